//! The control group that holds everything that a node's kubelet starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const MOUNTS: &str = "/proc/self/mountinfo";
/// Processes that were killed leave their group a moment later.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether controllers are mounted one by one, as cgroup version 1 has it.
pub fn is_v1() -> Result<bool> {
    Ok(hierarchies()?.iter().any(|(kind, _)| kind == "cgroup"))
}

/// A group of the same name in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the group below the root of every hierarchy.
    pub fn create(name: &str) -> Result<Self> {
        let mut folders = Vec::new();
        for (kind, root) in hierarchies()? {
            let folder = root.join(name);
            if let Err(error) = fs::create_dir(&folder)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error).with_context(|| format!("create {}", folder.display()));
            }
            if kind == "cgroup" {
                // Version 1 gives a new group no processors and no memory nodes.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(all) = fs::read_to_string(root.join(file)) {
                        fs::write(folder.join(file), all)
                            .with_context(|| format!("write {file} of {}", folder.display()))?;
                    }
                }
            } else {
                delegate(&root);
                delegate(&folder);
            }
            folders.push(folder);
        }
        if folders.is_empty() {
            bail!("no cgroup file system is mounted: a kubelet needs one");
        }
        Ok(Self { folders })
    }

    /// Removes the group and those below it, once the processes in them have ended.
    pub async fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        for folder in &self.folders {
            while let Err(error) = remove_tree(folder) {
                if Instant::now() >= deadline {
                    return Err(error).with_context(|| format!("remove {}", folder.display()));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

/// Lets groups below this one use every controller that there is (version 2).
fn delegate(folder: &Path) {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One that cannot be had is missed by the kubelet, which names it.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// File system type and place of each mounted hierarchy.
fn hierarchies() -> Result<Vec<(String, PathBuf)>> {
    let mounts = fs::read_to_string(MOUNTS).with_context(|| format!("read {MOUNTS}"))?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
            Some((kind.to_owned(), PathBuf::from(left.split(' ').nth(4)?)))
        })
        .collect())
}

/// The files of a group are not removed, only the groups, the innermost first.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
