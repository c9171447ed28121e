//! How a cluster is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use crate::frameworks::Framework;
use crate::process::{Lifetime, ProcessId};
use crate::repo::Repo;

/// How a cluster is brought up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster's folder: certificates, data, logs, `rig.json`.
    pub dir: PathBuf,
    /// Whether the cluster ends with this program.
    pub lifetime: Lifetime,
    /// Whether the folder goes when the cluster does.
    pub remove_dir: bool,
    /// Whether each step is reported on stderr.
    pub progress: bool,
    /// Whether etcd and the API server are all there is: nobody but the test changes anything.
    pub bare: bool,
    /// Further command-line arguments by part, for example `kube-apiserver`: `--runtime-config=api/all=true`.
    pub extra_args: BTreeMap<String, Vec<String>>,
    /// What Kueue's configuration has beside or instead of the rig's own: a JSON merge patch (RFC 7396).
    pub kueue: Value,
    /// Manifests that are there before Kueue starts, as Go module and path in it: it looks for the APIs of others only then.
    pub manifests: Vec<(String, String)>,
    /// Kinds of job that Kubernetes does not come with; each costs a process.
    pub frameworks: BTreeSet<Framework>,
}

impl Options {
    /// The cluster of `rig up`: in `.cluster/run`, and it stays until `rig down`.
    pub fn standing() -> Result<Self> {
        let dir = Repo::find()?.cluster_dir().join("run");
        Ok(Self::in_dir(dir, Lifetime::Detached))
    }

    /// A cluster for one test program, in a folder of its own: it ends with the program, even if that is killed.
    pub fn temporary() -> Result<Self> {
        // Tests of one program run side by side, and a process id comes again.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let parent = Repo::find()?.cluster_dir().join("temporary");
        sweep(&parent);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("{}-{now}-{number}", std::process::id()));
        Ok(Self { remove_dir: true, progress: false, ..Self::in_dir(dir, Lifetime::Owned) })
    }

    /// A cluster in a given folder.
    pub fn in_dir(dir: impl Into<PathBuf>, lifetime: Lifetime) -> Self {
        Self {
            dir: dir.into(),
            lifetime,
            remove_dir: false,
            progress: true,
            bare: false,
            extra_args: BTreeMap::new(),
            kueue: json!({}),
            manifests: Vec::new(),
            frameworks: BTreeSet::new(),
        }
    }

    /// Leaves out all parts but etcd and the API server.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Adds a command-line argument to a part: `etcd`, `kube-apiserver`, `kube-controller-manager`,
    /// `kube-scheduler`, `kwok`, `kueue` or a framework's program.
    #[must_use]
    pub fn extra_arg(mut self, part: &str, arg: impl Into<String>) -> Self {
        self.extra_args.entry(part.to_owned()).or_default().push(arg.into());
        self
    }

    /// Changes Kueue's configuration by a JSON merge patch.
    #[must_use]
    pub fn kueue(mut self, patch: &Value) -> Self {
        json_patch::merge(&mut self.kueue, patch);
        self
    }

    /// Applies a file or kustomize folder of a Go module before Kueue starts.
    #[must_use]
    pub fn manifest(mut self, module: &str, path: &str) -> Self {
        self.manifests.push((module.to_owned(), path.to_owned()));
        self
    }

    /// Has Kubernetes behave as an older minor version does, for example `1.33`: what came later is not served. 1.36 can do so
    /// back to 1.33.
    #[must_use]
    pub fn emulating(self, version: &str) -> Self {
        // Scheduler and controllers must not wait for what the API server does not serve.
        ["kube-apiserver", "kube-scheduler", "kube-controller-manager"]
            .into_iter()
            .fold(self, |options, part| options.extra_arg(part, format!("--emulated-version={version}")))
    }

    /// Adds a kind of job, with its controller.
    #[must_use]
    pub fn framework(mut self, framework: Framework) -> Self {
        self.frameworks.insert(framework);
        self
    }
}

/// Removes what test programs have left that were killed before they could tidy up.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().and_then(|pid| pid.parse().ok());
        let old = entry.metadata().and_then(|it| it.modified()).ok().and_then(|at| at.elapsed().ok());
        let hours = old.unwrap_or_default().as_secs() / 3600;
        if owner.is_some_and(|pid| ProcessId::of(pid).is_none()) && hours >= 1 {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
