//! What is running, written down where another command can find it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::certs::write_private;
use crate::process::{ProcessId, ProcessSpec};

/// The content of `rig.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Whether every part has become ready once. False: somebody's `up` was cut off.
    pub ready: bool,
    /// Whether it is an API server alone ([`crate::Options::bare`]).
    #[serde(default)]
    pub bare: bool,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The API server's address.
    pub server: String,
    /// The folder of the programs.
    pub programs: PathBuf,
    /// The processes, in the order in which they were started.
    pub processes: Vec<Entry>,
}

/// One process that the rig has started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// How it was started, so that any command can start it again.
    pub spec: ProcessSpec,
    /// Which process it is.
    #[serde(flatten)]
    pub id: ProcessId,
    /// Its log file.
    pub log: PathBuf,
}

/// The file itself. Several processes may write it (`rig up`, a demo that starts the controller), each under a lock.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state file of a cluster's folder.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("rig.json") }
    }

    /// Reads the state; `None` when nothing was ever started here.
    pub fn load(&self) -> Result<Option<State>> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("read {}", self.path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.path.display())),
        }
    }

    /// Changes the state: read, change and write under a lock that other processes respect.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let _lock = lock(&self.path.with_extension("lock"))?;
        let mut state = self.load()?.unwrap_or_default();
        change(&mut state);
        let next = self.path.with_extension("next");
        write_private(&next, &serde_json::to_string_pretty(&state)?)?;
        fs::rename(&next, &self.path).with_context(|| format!("write {}", self.path.display()))
    }

    /// Records a process under its name, in place of an earlier one of that name.
    pub fn record(&self, entry: Entry) -> Result<()> {
        self.update(|state| {
            match state.processes.iter_mut().find(|known| known.spec.name == entry.spec.name) {
                Some(known) => *known = entry,
                None => state.processes.push(entry),
            }
        })
    }

    /// Forgets everything.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Takes a lock file, waiting for whoever holds it. It is given back when the value is dropped or the process ends.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}
