//! The process that a real node lives in. It stays in the machine's namespaces, starts the node's first process in new
//! ones, gives it a network and a control group, and takes everything away again when either of the two is to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::cgroup::Cgroup;
use super::network::{self, Link};

const INIT: &str = include_str!("../../node/init");

/// What the holder is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The node's name.
    pub name: String,
    /// The cluster's folder.
    pub dir: PathBuf,
    /// The folder of the programs.
    pub programs: PathBuf,
    /// The API server's port on the machine.
    pub apiserver: u16,
}

/// What the holder says, as long as the node runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// The holder's own process id.
    pub holder: u32,
    /// The process id, as the machine sees it, of the node's first process.
    pub init: u32,
    /// The control group of the node's pods.
    pub cgroup: String,
    /// Which network link it has.
    pub link: u8,
    /// The node's address.
    pub address: String,
    /// The addresses of its pods.
    pub pods: String,
}

/// The folder of a node in that of its cluster.
pub fn folder(dir: &Path, name: &str) -> PathBuf {
    dir.join("nodes").join(name)
}

/// The file with [`Running`].
pub fn running_file(dir: &Path, name: &str) -> PathBuf {
    folder(dir, name).join("running.json")
}

/// Runs a node until it ends or SIGTERM comes.
pub async fn hold(order: &Path) -> Result<()> {
    let order: Order =
        serde_json::from_slice(&fs::read(order).with_context(|| format!("read {}", order.display()))?)?;
    let file = running_file(&order.dir, &order.name);
    // A reboot keeps the addresses.
    let before = fs::read(folder(&order.dir, &order.name).join("link"))
        .ok()
        .and_then(|text| String::from_utf8(text).ok()?.parse().ok());
    let _ = fs::remove_file(&file);

    let mut ended = signal(SignalKind::terminate())?;
    let cgroup_name = format!("slicegate-node-{}", std::process::id());
    let cgroup = Cgroup::create(&cgroup_name)?;
    let mut link = None;
    let mut first = start_first(&order)?;
    let result = tokio::select! {
        result = live(&order, &file, cgroup_name, before, &mut first, &mut link) => result,
        _ = ended.recv() => Ok(()),
    };

    let _ = fs::remove_file(&file);
    if let Some(link) = link {
        // Gone already when the node ended first.
        let _ = link.remove().await;
    }
    end(&mut first).await?;
    cgroup.remove().await?;
    result
}

/// Sets the node up and waits for its end.
async fn live(
    order: &Order,
    file: &Path,
    cgroup: String,
    before: Option<u8>,
    first: &mut Child,
    link: &mut Option<Link>,
) -> Result<()> {
    let stdout = first.stdout.take().context("the node's first process has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    if lines.next_line().await?.as_deref() != Some("ready") {
        bail!("the node's first process could not lay out the node");
    }
    let init = child_of(first.id().context("the node's first process has ended")?)?;
    let link = *link.insert(Link::create(init, before).await?);
    network::forward(init, order.apiserver)?;
    let running = Running {
        holder: std::process::id(),
        init,
        cgroup,
        link: link.number(),
        address: link.node().to_string(),
        pods: link.pods(),
    };
    fs::write(folder(&order.dir, &order.name).join("link"), link.number().to_string())?;
    let next = file.with_extension("next");
    fs::write(&next, serde_json::to_string_pretty(&running)?)?;
    fs::rename(next, file)?;
    let status = first.wait().await?;
    bail!("the node's first process ended ({status})")
}

/// `unshare` stays outside and waits; with it, however it ends, ends what it has started.
fn start_first(order: &Order) -> Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--net", "--uts", "--ipc", "--mount-proc", "bash", "-c", INIT, "init"])
        .arg(&order.name)
        .args([&order.dir, &order.programs])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the node's first process")
}

/// The one child of `unshare`.
fn child_of(parent: u32) -> Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    children
        .split_whitespace()
        .next()
        .context("the node's first process has ended")?
        .parse()
        .context("read a process id")
}

/// Kills the node's first process, and with it everything in its process namespace: `unshare` ends only when all of that is
/// gone.
async fn end(unshare: &mut Child) -> Result<()> {
    if let Some(id) = unshare.id() {
        match child_of(id).ok().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // It may have ended in this very moment.
            Some(init) => drop(kill_process(init, Signal::KILL)),
            None => drop(unshare.start_kill()),
        }
    }
    unshare.wait().await?;
    Ok(())
}
