//! The network of a node: one link to the machine, and the API server at the addresses where pods and kubelet expect it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::repo::output;

/// The Service `kubernetes`: the first address of the API server's Service range.
pub const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 1), 443);

/// The link between the machine and one node. The addresses are those set aside for tests of networks (RFC 2544), so they
/// collide with nobody's.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    number: u8,
}

impl Link {
    /// Makes the link and configures both of its ends. `preferred` is the number that the node had before.
    pub async fn create(node: u32, preferred: Option<u8>) -> Result<Self> {
        // Not the first free one: a node that is being rebooted is to find its own again, with other rigs beside it.
        let start = std::process::id().to_le_bytes()[0];
        let others = (0..=u8::MAX).map(|step| start.wrapping_add(step));
        for number in preferred.into_iter().chain(others) {
            let link = Self { number };
            let name = link.name();
            let add = format!("link add {name} type veth peer name eth0 netns {node}");
            match ip(&add).await {
                Ok(()) => {
                    link.configure(node).await?;
                    return Ok(link);
                }
                Err(error) if format!("{error:#}").contains("File exists") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("all of the links slicegate0 to slicegate255 are in use")
    }

    async fn configure(self, node: u32) -> Result<()> {
        let (name, machine, address, pods) = (self.name(), self.machine(), self.node(), self.pods());
        ip(&format!("address add {machine}/24 dev {name}")).await?;
        ip(&format!("link set {name} up")).await?;
        inside(node, "link set lo up").await?;
        inside(node, &format!("address add {}/32 dev lo", SERVICE.0)).await?;
        inside(node, &format!("address add {address}/24 dev eth0")).await?;
        inside(node, "link set eth0 up").await?;
        // The machine reaches the pods.
        ip(&format!("route add {pods} via {address}")).await
    }

    /// Removes it. It would go with the node's network namespace, but a moment later.
    pub async fn remove(self) -> Result<()> {
        ip(&format!("link delete {}", self.name())).await
    }

    /// Which one it is, of 256.
    pub fn number(self) -> u8 {
        self.number
    }

    fn name(self) -> String {
        format!("slicegate{}", self.number)
    }

    fn machine(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// The node's address.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// The addresses of the node's pods.
    pub fn pods(self) -> String {
        format!("198.19.{}.0/24", self.number)
    }
}

async fn ip(line: &str) -> Result<()> {
    output(Command::new("ip").args(line.split(' '))).await.with_context(|| format!("ip {line}"))?;
    Ok(())
}

async fn inside(node: u32, line: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={node}")).args(["--net", "ip"]).args(line.split(' '));
    output(&mut command).await.with_context(|| format!("ip {line}, in the node"))?;
    Ok(())
}

/// Passes connections on from a node to the machine's API server: those to the Service `kubernetes`, of which no
/// kube-proxy knows here, and those to the loopback address that the kubeconfigs name. Needs a tokio runtime.
pub fn forward(node: u32, apiserver: u16) -> Result<()> {
    let addresses = [SocketAddr::from(SERVICE), SocketAddr::from((Ipv4Addr::LOCALHOST, apiserver))];
    // A thread stays in the namespace that it has entered, so this one ends here.
    let listeners = std::thread::spawn(move || listen_inside(node, &addresses))
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that listens in the node has failed"))??;
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((inner, _)) => drop(tokio::spawn(pass(inner, apiserver))),
                    // A connection that was given up early, or too many open at once: it is over in a moment.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
    }
    Ok(())
}

async fn pass(mut inner: TcpStream, apiserver: u16) {
    // A connection that is refused out there is closed in here: that is what the client is to see.
    if let Ok(mut outer) = TcpStream::connect((Ipv4Addr::LOCALHOST, apiserver)).await {
        let _ = inner.set_nodelay(true);
        let _ = outer.set_nodelay(true);
        let _ = copy_bidirectional(&mut inner, &mut outer).await;
    }
}

fn listen_inside(node: u32, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let path = format!("/proc/{node}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {path}"))?;
    addresses
        .iter()
        .map(|address| TcpListener::bind(address).with_context(|| format!("listen on {address} in the node")))
        .collect()
}
