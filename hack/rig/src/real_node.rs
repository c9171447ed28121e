//! A real node beside the emulated ones: kubelet, containerd and runc in namespaces of their own, on the same machine.
//!
//! Everything in a node is below one process, and goes when that goes: programs, containers, mounts, network. The node sees
//! the machine's root file system, but nothing that it writes ever reaches it. What a node keeps on its disk
//! (`/var/lib/kubelet`, `/var/lib/containerd`, `/var/lib/slicegate`, `/var/lib/cni`, `/etc/cdi`, the logs of its pods) lies
//! in the cluster's folder and survives [`RealNode::reboot`]; everything else, `/run` and `/dev` among it, does not.
//!
//! ```text
//! machine   API server 127.0.0.1:P ◀── holder ──▶ (in the node) 10.96.0.1:443 and 127.0.0.1:P
//!           198.18.N.1 ── veth ── 198.18.N.2   kubelet, containerd
//!                                              └── cni0, pods 198.19.N.0/24
//! ```

mod cgroup;
mod config;
mod holder;
mod network;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub use holder::hold;
use holder::{Order, Running, folder, running_file};

use crate::certs::client_certificate;
use crate::identity::write_certificate_kubeconfig;
use crate::image::Image;
use crate::nodes::schedulable;
use crate::process::{GRACE, Process, ProcessId, ProcessSpec};
use crate::ready::Health;
use crate::repo::output;
use crate::rig::Rig;

const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
const SOCKET: &str = "/run/containerd/containerd.sock";
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";
const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
/// The programs that a node takes from the machine.
const MACHINE_PROGRAMS: [&str; 7] = ["runc", "unshare", "nsenter", "setpriv", "ip", "bash", "pivot_root"];

/// A real node as one wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealNodeSpec {
    /// Its name.
    pub name: String,
    /// Labels that the kubelet registers the node with. Those below `kubernetes.io` it may not set itself.
    pub labels: BTreeMap<String, String>,
    /// Further command-line arguments of the kubelet.
    pub kubelet_args: Vec<String>,
}

impl RealNodeSpec {
    /// A node without labels of its own.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), labels: BTreeMap::new(), kubelet_args: Vec::new() }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds a command-line argument of the kubelet.
    #[must_use]
    pub fn kubelet_arg(mut self, arg: impl Into<String>) -> Self {
        self.kubelet_args.push(arg.into());
        self
    }
}

/// A real node of a rig. It ends with the rig, not with this value.
#[derive(Debug)]
pub struct RealNode<'rig> {
    rig: &'rig Rig,
    spec: RealNodeSpec,
}

impl<'rig> RealNode<'rig> {
    /// See [`Rig::add_real_node`].
    pub(crate) async fn add(rig: &'rig Rig, spec: RealNodeSpec) -> Result<Self> {
        check_machine(rig)?;
        rig.repo().build_node().await?;
        let own = folder(rig.dir(), &spec.name);
        for part in ["cni/net.d", "disk"] {
            let part = own.join(part);
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        fs::write(own.join("spec.json"), serde_json::to_string_pretty(&spec)?)?;
        let apiserver = rig.server().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let order = Order {
            name: spec.name.clone(),
            dir: rig.dir().to_owned(),
            programs: rig.repo().programs(),
            apiserver: apiserver.context("the API server's address has no port")?,
        };
        fs::write(own.join("order.json"), serde_json::to_string_pretty(&order)?)?;

        let node = Self { rig, spec };
        let holder = ProcessSpec::new(node.part("node"), rig_program()?)
            .args(["hold-node".to_owned(), own.join("order.json").display().to_string()])
            .tidies_up();
        node.rig.spawn(holder)?;
        node.start_programs().await?;
        Ok(node)
    }

    /// See [`Rig::real_node`].
    pub(crate) fn attach(rig: &'rig Rig, name: &str) -> Result<Self> {
        let file = folder(rig.dir(), name).join("spec.json");
        let text =
            fs::read(&file).with_context(|| format!("no real node {name}: read {}", file.display()))?;
        Ok(Self { rig, spec: serde_json::from_slice(&text)? })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The process id, as the machine sees it, of the first process in the node's namespaces.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.running()?.init)
    }

    /// The node's address, at which the machine reaches it. The machine reaches the pods at theirs, too.
    pub fn address(&self) -> Result<String> {
        Ok(self.running()?.address)
    }

    /// Where a path of the node is on the machine, for example of `/var/lib/kubelet/device-plugins` or `/dev/nvidia0`. Holds
    /// until the node is rebooted. Symbolic links with absolute targets lead back to the machine: use `/run`, not `/var/run`.
    pub fn path(&self, inside: impl AsRef<Path>) -> Result<PathBuf> {
        let inside = inside.as_ref();
        let relative =
            inside.strip_prefix("/").with_context(|| format!("{} is not absolute", inside.display()))?;
        Ok(PathBuf::from(format!("/proc/{}/root", self.pid()?)).join(relative))
    }

    /// A command to be run in the node.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(self.enter()?).arg(program.as_ref());
        Ok(command)
    }

    /// Gives the node an image. Pods use it by its name with `imagePullPolicy: Never` or `IfNotPresent`.
    pub async fn import_image(&self, image: &Image) -> Result<()> {
        let archive = folder(self.rig.dir(), self.name()).join("image.tar");
        image.write(&archive)?;
        let mut command = self.command(self.rig.repo().programs().join("ctr"))?;
        command
            .args(["--address", SOCKET, "--namespace", "k8s.io", "images", "import", "--local"])
            .arg(&archive);
        let imported = output(&mut command).await.with_context(|| format!("import image {}", image.name()));
        let _ = fs::remove_file(&archive);
        imported.map(drop)
    }

    /// What a container has written, each line with its time, stream and completeness before it, as the kubelet keeps it: of
    /// all the container's runs, the oldest first. This needs neither kubelet nor API server; `kubectl logs` works, too.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        let pods = self.path("/var/log/pods")?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&pods).with_context(|| format!("read {}", pods.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&format!("{namespace}_{pod}_")) {
                for file in fs::read_dir(entry.path().join(container)).into_iter().flatten() {
                    files.push(file?.path());
                }
            }
        }
        files.sort();
        let texts: Result<Vec<String>> = files
            .iter()
            .map(|file| fs::read_to_string(file).with_context(|| format!("read {}", file.display())))
            .collect();
        Ok(texts?.concat())
    }

    /// Kills the kubelet: a crash. Containers go on.
    pub async fn kill_kubelet(&self) -> Result<()> {
        self.kill("kubelet").await
    }

    /// Starts the kubelet and waits until pods can be scheduled to the node.
    pub async fn start_kubelet(&self) -> Result<()> {
        let running = self.running()?;
        let own = folder(self.rig.dir(), self.name());
        let config = own.join("kubelet.json");
        let ca = self.rig.ca_file();
        fs::write(&config, serde_json::to_string_pretty(&config::kubelet(&running, &ca)?)?)?;
        let labels: Vec<String> =
            self.spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let health = Health::Answers(format!("http://{}:10248/healthz", running.address));
        let spec = self
            .program("kubelet")?
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", self.kubeconfig(&own)?.display()))
            .arg(format!("--hostname-override={}", self.name()))
            .arg(format!("--node-ip={}", running.address))
            .arg(format!("--node-labels={}", labels.join(",")))
            .arg("--v=2")
            .args(self.spec.kubelet_args.clone())
            .ready_when(health);
        let kubelet = self.rig.spawn(spec)?;
        self.rig.until_ready(&kubelet).await?;
        self.until_ready().await
    }

    /// Kills the kubelet and starts it again.
    pub async fn restart_kubelet(&self) -> Result<()> {
        self.kill_kubelet().await?;
        self.start_kubelet().await
    }

    /// Kills containerd and starts it again. Containers go on: each has a shim of its own.
    pub async fn restart_containerd(&self) -> Result<()> {
        self.kill("containerd").await?;
        self.start_containerd().await
    }

    /// The power goes and comes back: everything in the node ends at once, `/run` and `/dev` are new, what is on its disk
    /// stays, the boot id is another one. Then containerd and kubelet start.
    pub async fn reboot(&self) -> Result<()> {
        let holder = self.process("node")?;
        holder.terminate().await?;
        for part in ["kubelet", "containerd"] {
            self.process(part)?.wait(GRACE).await?;
        }
        holder.restart().await?;
        self.start_programs().await
    }

    /// Waits until pods can be scheduled to the node since its latest boot, and the kubelet takes device plugins and tells
    /// of the devices in use. A kubelet that was only restarted hears of its pods a moment later.
    pub async fn until_ready(&self) -> Result<()> {
        let boot = fs::read_to_string(self.path("/run/slicegate-node/kernel.random.boot_id")?)?;
        let nodes: Api<Node> = Api::all(self.rig.client().await?);
        let kubelet = self.process("kubelet")?;
        let sockets = [self.path(DEVICE_PLUGINS)?, self.path(POD_RESOURCES)?];
        let deadline = Instant::now() + LIMIT;
        loop {
            let node = nodes.get_opt(self.name()).await?;
            let info = |node: &Node| Some(node.status.as_ref()?.node_info.as_ref()?.boot_id.clone());
            // A node object still says what a kubelet has said that runs no more; its sockets do not.
            if node.is_some_and(|node| schedulable(&node) && info(&node).as_deref() == Some(boot.trim()))
                && sockets.iter().all(|socket| UnixStream::connect(socket).is_ok())
            {
                return Ok(());
            }
            if !kubelet.is_running() || Instant::now() >= deadline {
                let log = kubelet.log_path().display();
                bail!(
                    "node {} did not become ready; the kubelet's log is {log}\n{}",
                    self.name(),
                    kubelet.log_tail(20)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What is the same after a first start and after a reboot.
    async fn start_programs(&self) -> Result<()> {
        let running = self.until_held().await?;
        let own = folder(self.rig.dir(), self.name());
        fs::write(own.join("cni/net.d/10-slicegate.conflist"), config::network(&running).to_string())?;
        self.start_containerd().await?;
        self.import_image(&Image::pause(self.rig.repo())).await?;
        self.start_kubelet().await
    }

    async fn start_containerd(&self) -> Result<()> {
        let config = folder(self.rig.dir(), self.name()).join("containerd.toml");
        fs::write(&config, config::containerd(&config::plugins()?))?;
        // The shim is looked up there.
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.rig.repo().programs().display());
        let spec =
            self.program("containerd")?.arg(format!("--config={}", config.display())).env("PATH", path);
        let socket = self.path(SOCKET)?;
        // A child that the last one was just starting may hold its socket open for a moment.
        let _ = fs::remove_file(&socket);
        let containerd = self.rig.spawn(spec)?;
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&socket).is_err() {
            if !containerd.is_running() || Instant::now() >= deadline {
                let log = containerd.log_path().display();
                bail!("containerd is not ready; its log is {log}\n{}", containerd.log_tail(20));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the holder says that the node is laid out.
    async fn until_held(&self) -> Result<Running> {
        let holder = self.process("node")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(running) = self.running()
                && running.holder == holder.id().pid
            {
                return Ok(running);
            }
            if !holder.is_running() || Instant::now() >= deadline {
                let log = holder.log_path().display();
                bail!("node {} is not laid out; its log is {log}\n{}", self.name(), holder.log_tail(20));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn running(&self) -> Result<Running> {
        let file = running_file(self.rig.dir(), self.name());
        let text = fs::read(&file)
            .with_context(|| format!("node {} does not run: read {}", self.name(), file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
    }

    /// A process of this node among those of the rig, which are named after both.
    fn part(&self, part: &str) -> String {
        format!("{part}-{}", self.name())
    }

    /// The rig's process of a part: `node`, `containerd` or `kubelet`.
    fn process(&self, part: &str) -> Result<Process> {
        let name = self.part(part);
        self.rig.process(&name).with_context(|| format!("no process {name}"))
    }

    /// One of the rig's programs, to be started in the node.
    fn program(&self, name: &str) -> Result<ProcessSpec> {
        let program = self.rig.repo().programs().join(name);
        Ok(ProcessSpec::new(self.part(name), "nsenter")
            .args(self.enter()?)
            .arg(program.display().to_string()))
    }

    fn enter(&self) -> Result<Vec<String>> {
        let mut args = vec![format!("--target={}", self.pid()?)];
        args.extend(["--mount", "--pid", "--net", "--uts", "--ipc", "--"].map(String::from));
        Ok(args)
    }

    /// Kills a program. The rig's process is `nsenter`, which waits outside of the node for the program inside.
    async fn kill(&self, part: &str) -> Result<()> {
        let process = self.process(part)?;
        let outer = process.id().pid;
        let inner = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
        let inner: Vec<_> =
            inner.split_whitespace().filter_map(|pid| ProcessId::of(pid.parse().ok()?)).collect();
        process.kill().await?;
        for id in inner {
            if !id.gone(GRACE).await {
                bail!("{part} of node {} does not end", self.name());
            }
        }
        Ok(())
    }

    /// A kubeconfig as the node itself (`system:node:NAME`).
    fn kubeconfig(&self, own: &Path) -> Result<PathBuf> {
        let file = own.join("kubeconfig");
        if !file.is_file() {
            let user = format!("system:node:{}", self.name());
            let pki = self.rig.ca_file();
            let pki = pki.parent().context("the authority's certificate lies in no folder")?;
            let (certificate, key) = client_certificate(pki, &self.part("kubelet"), &user, "system:nodes")?;
            write_certificate_kubeconfig(
                &file,
                self.rig.server(),
                &self.rig.ca_file(),
                &user,
                (&certificate, &key),
            )?;
        }
        Ok(file)
    }
}

/// Says what a real node lacks on this machine.
fn check_machine(rig: &Rig) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a real node needs root: it mounts file systems and runs containers");
    }
    for program in MACHINE_PROGRAMS {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            bail!("a real node needs the program {program}: run hack/prerequisites node");
        }
    }
    config::plugins()?;
    let dir = rig.dir().to_string_lossy();
    if dir.contains([':', ',']) {
        bail!(
            "{dir}: the folder of a cluster with real nodes must have neither a colon nor a comma in its path"
        );
    }
    Ok(())
}

/// The program `rig`, which holds nodes; it lies beside the one that runs.
fn rig_program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .skip(1)
        .map(|folder| folder.join("rig"))
        .find(|file| file.is_file())
        .context("the program rig is not built: run cargo build -p slicegate-rig first")
}
