//! The cluster as a whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::Value;

use crate::certs::{Pki, write_private};
use crate::control_plane::{self, Layout};
use crate::identity;
use crate::kueue;
use crate::kwok;
use crate::manager::{self, Ports};
use crate::manifests;
use crate::nodes::{self, NodeSpec};
use crate::options::Options;
use crate::ports::Reserved;
use crate::process::{Lifetime, Process, ProcessSpec};
use crate::progress::{explained, say, timed};
use crate::ready::until_ready;
use crate::real_node::{RealNode, RealNodeSpec};
use crate::repo::{Repo, output};
use crate::state::{State, StateFile, lock};

/// How long Kubernetes' own parts may take to end. What they hold is thrown away, so not long.
const PART_GRACE: Duration = Duration::from_secs(3);
/// Ended last, because the others want to say goodbye to it.
const FOUNDATION: [&str; 2] = ["etcd", "kube-apiserver"];

/// A running cluster.
#[derive(Debug)]
pub struct Rig {
    dir: PathBuf,
    repo: Repo,
    lifetime: Lifetime,
    remove_dir: bool,
    was_up: bool,
    state: StateFile,
    kubeconfig: PathBuf,
    server: String,
    processes: Mutex<Vec<Process>>,
    /// Held while the cluster is brought up, so that a second `up` waits instead of starting another one.
    starting: Option<File>,
}

impl Rig {
    /// Brings a cluster up. One that is up already in that folder is taken as it is; what is left of one that is not
    /// wholly up is ended first.
    pub async fn up(options: Options) -> Result<Self> {
        let repo = Repo::find()?;
        repo.build().await?;
        if !options.frameworks.is_empty() {
            repo.build_frameworks().await?;
        }
        let dir = std::path::absolute(&options.dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let starting = lock_folder(&dir, options.progress).await?;

        if let Some(state) = StateFile::new(&dir).load()? {
            if wholly_up(&state) {
                let mut rig = Self::attach(&dir)?;
                rig.was_up = true;
                return Ok(rig);
            }
            say(options.progress, "what is left of an earlier cluster is ended first");
            end_recorded(&dir).await?;
        }
        for stale in ["etcd", "logs", "pki", "kubeconfigs", "nodes"] {
            let _ = fs::remove_dir_all(dir.join(stale));
        }

        let mut rig = Self {
            state: StateFile::new(&dir),
            kubeconfig: dir.join("kubeconfig"),
            server: String::new(),
            lifetime: options.lifetime,
            remove_dir: options.remove_dir,
            was_up: false,
            processes: Mutex::default(),
            starting: Some(starting),
            repo,
            dir,
        };
        match Box::pin(rig.start(&options)).await {
            Ok(()) => {
                rig.starting = None;
                Ok(rig)
            }
            Err(error) => {
                // The folder stays: the error names a log file in it.
                rig.remove_dir = false;
                rig.kill_all();
                let _ = rig.state.remove();
                Err(error)
            }
        }
    }

    /// Takes up a cluster that another command has brought up. It does not end with this value.
    pub fn attach(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir)?;
        let file = StateFile::new(&dir);
        let state = file.load()?.with_context(|| format!("no cluster in {}: run `rig up`", dir.display()))?;
        if !wholly_up(&state) {
            bail!(
                "the cluster in {} is not wholly up: see `rig status`, or run `rig up` again",
                dir.display()
            );
        }
        let processes = state.processes.into_iter().map(|entry| Process::attach(entry, &file)).collect();
        Ok(Self {
            repo: Repo::find()?,
            lifetime: Lifetime::Detached,
            remove_dir: false,
            was_up: true,
            state: file,
            kubeconfig: state.kubeconfig,
            server: state.server,
            processes: Mutex::new(processes),
            starting: None,
            dir,
        })
    }

    async fn start(&mut self, options: &Options) -> Result<()> {
        let dir = self.dir.clone();
        for folder in ["logs", "kubeconfigs"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("create {folder}"))?;
        }
        let pki = Pki::create(&dir.join("pki"))?;
        let port = Reserved::new()?;
        self.server = format!("https://127.0.0.1:{}", port.port());
        let kubeconfig = self.kubeconfig.clone();
        identity::write_kubeconfig(&kubeconfig, &self.server, &pki.ca_file(), "admin", pki.admin_token())?;
        let (programs, server) = (self.repo.programs(), self.server.clone());
        self.state.update(|state| {
            let bare = options.bare;
            *state = State { kubeconfig: kubeconfig.clone(), server, programs, bare, ..State::default() };
        })?;

        let programs = self.repo.programs();
        let layout = Layout { programs: &programs, dir: &dir, pki: &pki, kubeconfig: &self.kubeconfig };
        let serving = async {
            let (etcd, url) = control_plane::etcd(&layout)?;
            self.bring_up(options, etcd).await?;
            self.bring_up(options, control_plane::apiserver(&layout, &url, port)).await
        };
        if options.bare {
            serving.await?;
            return self.state.update(|state| state.ready = true);
        }
        let ports = Ports::new()?;
        let config = kueue::config(&layout, &ports, options.frameworks.iter().copied(), &options.kueue)?;
        let mut frameworks = Vec::new();
        for framework in &options.frameworks {
            let ports = Ports::new()?;
            let config = framework.config(&layout, &ports)?;
            frameworks.push((*framework, ports, config));
        }

        // Kueue's manifests take a second of computing; meanwhile the API server starts.
        let rendering = async {
            let mut objects = self.render("sigs.k8s.io/kueue", &pki, &ports, &config).await?;
            for (framework, ports, config) in &frameworks {
                objects.extend(self.render(framework.module(), &pki, ports, config).await?);
            }
            for (module, path) in &options.manifests {
                let path = self.repo.module(module).await?.join(path);
                objects.extend(manifests::read(&self.kubectl_path(), &path).await?);
            }
            anyhow::Ok(objects)
        };
        let modules = self.repo.module("sigs.k8s.io/kwok");
        let ((), objects, kwok_module) = futures::try_join!(serving, rendering, modules)?;

        let kubernetes = async {
            let controllers = self.bring_up(options, control_plane::controller_manager(&layout)?);
            let scheduler = self.bring_up(options, control_plane::scheduler(&layout)?);
            let nodes = self.bring_up(options, kwok::kwok(&layout, &kwok_module)?);
            futures::try_join!(controllers, scheduler, nodes)
        };
        let queues = async {
            let client = self.client().await?;
            let applying = manifests::apply(&client, objects, 8);
            timed(options.progress, "Kueue's manifests", applying)
                .await
                .context("apply Kueue's manifests")?;
            let mut managers = vec![kueue::kueue(&layout, ports, &config)?];
            for (framework, ports, config) in frameworks {
                managers.push(framework.process(&layout, ports, &config)?);
            }
            try_join_all(managers.into_iter().map(|part| self.bring_up(options, part))).await.map(drop)
        };
        futures::try_join!(kubernetes, queues)?;
        self.state.update(|state| state.ready = true)
    }

    async fn render(&self, module: &str, pki: &Pki, ports: &Ports, config: &str) -> Result<Vec<Value>> {
        let folder = self.repo.module(module).await?;
        manager::objects(&self.kubectl_path(), &folder, pki, &ports.webhook_url(), config).await
    }

    async fn bring_up(&self, options: &Options, part: ProcessSpec) -> Result<()> {
        let name = part.name.clone();
        let extra = options.extra_args.get(&name).cloned().unwrap_or_default();
        let process = self.spawn(part.args(extra))?;
        timed(options.progress, &name, self.until_ready(&process)).await
    }

    /// Waits until a process is ready, as its specification says ([`ProcessSpec::ready_when`]).
    pub async fn until_ready(&self, process: &Process) -> Result<()> {
        until_ready(process, &self.ca_file()).await
    }

    /// Kills a process, starts it again and waits until it is ready.
    pub async fn restart(&self, name: &str) -> Result<()> {
        let process = self.process(name).with_context(|| format!("no process {name}"))?;
        process.restart().await?;
        self.until_ready(&process).await
    }

    /// Keeps the folder, with its logs, when the cluster ends.
    pub fn keep_folder(&mut self) {
        self.remove_dir = false;
    }

    /// Ends everything, what was started last first.
    pub async fn down(self) -> Result<()> {
        let _lock = lock_folder(&self.dir, false).await?;
        let processes = std::mem::take(&mut *self.processes());
        end_recorded(&self.dir).await?;
        for process in processes {
            // Collects what has ended already.
            let _ = process.wait(PART_GRACE).await;
        }
        if self.remove_dir {
            let _ = fs::remove_dir_all(&self.dir);
        }
        Ok(())
    }

    fn kill_all(&self) {
        for process in std::mem::take(&mut *self.processes()).iter().rev() {
            process.kill_now();
        }
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The repository around it.
    pub fn repo(&self) -> &Repo {
        &self.repo
    }

    /// Whether `up` found the cluster up already.
    pub fn was_up(&self) -> bool {
        self.was_up
    }

    /// The API server's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The certificate that the servers' certificates are signed with.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("pki/ca.crt")
    }

    /// A client with the administrator's rights. Each call makes a new one: a client belongs to the runtime that it
    /// was made in, and tests that share a rig have a runtime each.
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_of(&self.kubeconfig).await
    }

    /// A client for a kubeconfig, for example one of [`Rig::kubeconfig_for`].
    pub async fn client_of(&self, kubeconfig: &Path) -> Result<kube::Client> {
        let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let options = kube::config::KubeConfigOptions::default();
        Ok(kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &options).await?)?)
    }

    /// The `kubectl` program.
    pub fn kubectl_path(&self) -> PathBuf {
        self.repo.programs().join("kubectl")
    }

    /// Runs kubectl as administrator and gives what it wrote; its error output becomes the error.
    pub async fn kubectl<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = tokio::process::Command::new(self.kubectl_path());
        command.args(args).env("KUBECONFIG", &self.kubeconfig);
        output(&mut command).await.context("kubectl")
    }

    /// Renders a kustomize folder and applies it: definitions first, then namespaces, then the rest. A relative path
    /// counts from the repository's root.
    pub async fn apply_kustomize(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = self.repo.root().join(folder);
        let objects = manifests::render(&self.kubectl_path(), &folder).await?;
        manifests::apply(&self.client().await?, objects, 1)
            .await
            .with_context(|| format!("apply {}", folder.display()))
    }

    /// Applies the documents of a YAML text in the same way.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<()> {
        self.apply_objects(manifests::parse(yaml)?).await
    }

    /// Applies objects in the same way.
    pub async fn apply_objects(&self, objects: Vec<Value>) -> Result<()> {
        manifests::apply(&self.client().await?, objects, 1).await
    }

    /// Adds an emulated node and waits until pods can be scheduled to it.
    pub async fn add_node(&self, node: NodeSpec) -> Result<()> {
        self.add_nodes(&[node]).await
    }

    /// Adds emulated nodes and waits until pods can be scheduled to all of them.
    pub async fn add_nodes(&self, specs: &[NodeSpec]) -> Result<()> {
        nodes::add(&self.client().await?, specs).await
    }

    /// Adds a real node, with a kubelet, containerd and containers, and waits until pods can be scheduled to it. Needs root
    /// and what `hack/prerequisites node` installs.
    pub async fn add_real_node(&self, spec: RealNodeSpec) -> Result<RealNode<'_>> {
        RealNode::add(self, spec).await
    }

    /// A real node that was added before.
    pub fn real_node(&self, name: &str) -> Result<RealNode<'_>> {
        RealNode::attach(self, name)
    }

    /// A long-lived token of a service account, on request bound to a node as the tokens of that node's pods are. A
    /// bound token is void once the Node object is deleted, even if a node of that name is created again.
    pub async fn token(&self, namespace: &str, account: &str, node: Option<&str>) -> Result<String> {
        identity::token(&self.client().await?, namespace, account, node).await
    }

    /// Writes a kubeconfig with a token; `name` is its file name.
    pub fn kubeconfig_for(&self, name: &str, token: &str) -> Result<PathBuf> {
        let file = self.dir.join("kubeconfigs").join(name);
        identity::write_kubeconfig(&file, &self.server, &self.ca_file(), name, token)
    }

    /// Starts a process under the cluster's care: with a log file, recorded in `rig.json`, ended by `down`. A process
    /// of that name that still runs is an error; one that has ended is replaced.
    pub fn spawn(&self, spec: ProcessSpec) -> Result<Process> {
        if self.process(&spec.name).is_some_and(|process| process.is_running()) {
            bail!("{} runs already", spec.name);
        }
        let process = Process::start(spec, &self.dir.join("logs"), self.lifetime, &self.state)?;
        let mut processes = self.processes();
        processes.retain(|known| known.name() != process.name());
        processes.push(process.clone());
        Ok(process)
    }

    /// A process by its name: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kueue`, `kwok`,
    /// a framework's program, or one of [`Rig::spawn`].
    pub fn process(&self, name: &str) -> Option<Process> {
        self.processes().iter().find(|process| process.name() == name).cloned()
    }

    /// Writes a private file into the cluster's folder and gives its path.
    pub fn write_file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.dir.join(name);
        write_private(&file, text)?;
        Ok(file)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Owned {
            self.kill_all();
            // After a failed test the logs are wanted.
            if self.remove_dir && !std::thread::panicking() {
                let _ = fs::remove_dir_all(&self.dir);
            }
        }
    }
}

/// Ends the cluster of a folder, whoever brought it up; gives the names of the processes that were ended.
pub async fn down(dir: &Path) -> Result<Vec<String>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let _lock = lock_folder(dir, true).await?;
    end_recorded(dir).await
}

async fn end_recorded(dir: &Path) -> Result<Vec<String>> {
    let file = StateFile::new(dir);
    let Some(state) = file.load()? else { return Ok(Vec::new()) };
    let running: Vec<_> = state.processes.into_iter().filter(|entry| entry.id.is_running()).rev().collect();
    let (foundation, rest): (Vec<_>, Vec<_>) =
        running.iter().partition(|entry| FOUNDATION.contains(&entry.spec.name.as_str()));
    futures::future::join_all(rest.iter().map(|entry| entry.id.end(entry.spec.grace(PART_GRACE)))).await;
    for entry in foundation {
        entry.id.end(PART_GRACE).await;
    }
    if let Some(stubborn) = running.iter().find(|entry| entry.id.is_running()) {
        bail!("{} (process {}) does not end", stubborn.spec.name, stubborn.id.pid);
    }
    file.remove()?;
    for data in ["etcd", "nodes"] {
        let _ = fs::remove_dir_all(dir.join(data));
    }
    Ok(running.into_iter().map(|entry| entry.spec.name).collect())
}

/// Whether every part of the control plane runs; processes that others have added do not count.
fn wholly_up(state: &State) -> bool {
    const OTHERS: [&str; 4] = ["kube-controller-manager", "kube-scheduler", "kueue", "kwok"];
    let runs =
        |part: &&str| state.processes.iter().any(|entry| entry.spec.name == **part && entry.id.is_running());
    state.ready && FOUNDATION.iter().all(runs) && (state.bare || OTHERS.iter().all(runs))
}

/// One command at a time changes a cluster; another one waits, and says so.
async fn lock_folder(dir: &Path, progress: bool) -> Result<File> {
    let file = dir.join("up.lock");
    let waiting = tokio::task::spawn_blocking(move || lock(&file));
    explained(progress, "another rig command is at work here", waiting).await?
}
