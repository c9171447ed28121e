//! The repository around the rig: the programs that `hack/cluster/build` makes and the modules they come from.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::state::lock;

/// The repository's root folder.
#[derive(Debug, Clone)]
pub struct Repo {
    root: PathBuf,
}

impl Repo {
    /// Finds the repository from the current folder upwards, else where this program was built.
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir().context("find the current folder")?;
        here.ancestors()
            .chain(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors())
            .find(|folder| folder.join("hack/cluster/go.mod").is_file())
            .map(|root| Self { root: root.to_owned() })
            .context("not inside the repository: no hack/cluster/go.mod in this folder or above it")
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where built programs and clusters live; ignored by git.
    pub fn cluster_dir(&self) -> PathBuf {
        self.root.join(".cluster")
    }

    /// The folder of the control plane's programs.
    pub fn programs(&self) -> PathBuf {
        self.cluster_dir().join("bin")
    }

    /// Builds what is missing. The first time that takes minutes and says so; later it takes no time.
    pub async fn build(&self) -> Result<()> {
        self.run_build(&[]).await
    }

    /// Builds the controllers of the frameworks that Kubernetes does not come with, in the same way.
    pub async fn build_frameworks(&self) -> Result<()> {
        self.run_build(&["frameworks"]).await
    }

    /// Builds what a real node runs, in the same way.
    pub async fn build_node(&self) -> Result<()> {
        self.run_build(&["node"]).await
    }

    async fn run_build(&self, args: &[&str]) -> Result<()> {
        let dir = self.cluster_dir();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        // Tests may start at the same moment; one of them builds.
        let lock_file = dir.join("build.lock");
        let _lock = tokio::task::spawn_blocking(move || lock(&lock_file)).await??;
        let status = Command::new(self.root.join("hack/cluster/build"))
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .context("run hack/cluster/build (is Go installed?)")?;
        if !status.success() {
            bail!("hack/cluster/build failed ({status})");
        }
        Ok(())
    }

    /// The folder of a Go module: manifests are read from there, not copied into this repository.
    pub async fn module(&self, module: &str) -> Result<PathBuf> {
        let mut command = Command::new("go");
        command.args(["list", "-m", "-f", "{{.Dir}}", module]).current_dir(self.root.join("hack/cluster"));
        let dir =
            output(&mut command).await.with_context(|| format!("find the folder of module {module}"))?;
        if dir.trim().is_empty() {
            bail!("module {module} has not been downloaded: run hack/cluster/build");
        }
        Ok(PathBuf::from(dir.trim()))
    }
}

/// Runs a command to its end and gives what it wrote; its error output becomes the error.
pub async fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if !output.status.success() {
        bail!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
