//! The state directory: what the simulated driver of a node holds, shared by all processes and outliving them.
//!
//! `state.json` is read and replaced under `lock`. `gpu-<index>.lock` is held for the whole of a call on a GPU, latency
//! included, so that calls on one GPU follow each other while different GPUs proceed in parallel. A GPU's lock is
//! always taken before `lock`. `events.json` is replaced under `lock`, too, and read without it. `sessions/` holds a locked
//! file for each open session; a process that dies leaves its file unlocked.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    code::{Code, NvmlResult},
    config::{Config, MigMode},
    driver::{self, Placement},
    events::{self, Event, Events},
    ids,
    state::{Gpu, Instance, State, VERSION},
    tables::{self, Model, ModelError},
};

const STATE: &str = "state.json";
const EVENTS: &str = "events.json";
const SESSIONS: &str = "sessions";

/// A state directory.
///
/// The operations beyond reading play the part of other programs on the node. They obey the driver's rules, take no
/// latency and count towards no fault.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

/// Why a state directory cannot be used, or why an operation on it was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("{path}: {source}; make the state directory writable for this user", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The directory has no state yet.
    #[error("{path}: no simulator state here; it is made by the first nvmlInit or by StateDir::prepare", path = path.display())]
    Absent {
        /// `state.json`
        path: PathBuf,
    },
    /// The state cannot be understood.
    #[error("{path}: not a state of the simulator ({reason}); remove it to start with empty GPUs", path = path.display())]
    Corrupt {
        /// `state.json`
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The state is of other GPUs than the configuration.
    #[error("{path}: its GPUs are not the configured ones ({reason}); remove it to start with empty GPUs", path = path.display())]
    OtherGpus {
        /// `state.json`
        path: PathBuf,
        /// The difference.
        reason: String,
    },
    /// Which boot this is cannot be told.
    #[error("the kernel's boot id cannot be read ({0}); set bootID in the configuration")]
    NoBootId(io::Error),
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// A driver would have refused the operation.
    #[error("{what}: {code}")]
    Refused {
        /// The operation.
        what: String,
        /// What a driver would have answered.
        code: Code,
    },
}

impl From<ModelError> for StateError {
    fn from(error: ModelError) -> Self {
        Self::Config(error.to_string())
    }
}

impl StateDir {
    /// A state directory that exists already, or will once a driver starts on it.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Does what the driver does when it starts: makes the directory and the state where there is none, and drops the
    /// instances of an earlier boot.
    pub fn prepare(config: &Config) -> Result<Self, StateError> {
        config.check().map_err(|e| StateError::Config(e.to_string()))?;
        let this = Self::open(&config.state_dir);
        fs::create_dir_all(&this.dir).map_err(|source| StateError::Io { path: this.dir.clone(), source })?;
        let boot_id = config.current_boot_id().map_err(StateError::NoBootId)?;
        let configured = configured_gpus(config);
        let _lock = this.lock("lock")?;
        let before = match this.load() {
            Err(StateError::Absent { .. }) => None,
            other => Some(other?),
        };
        let mut state = before.clone().unwrap_or_else(|| State {
            version: VERSION,
            boot_id: boot_id.clone(),
            gpus: configured.clone(),
            calls: std::collections::BTreeMap::new(),
        });
        if let Some(reason) = difference(&state.gpus, &configured) {
            return Err(StateError::OtherGpus { path: this.file(), reason });
        }
        if state.boot_id != boot_id {
            state.boot_id = boot_id;
            for (gpu, configured) in state.gpus.iter_mut().zip(&configured) {
                driver::reboot(tables::model(&gpu.model)?, gpu, configured.mig_enabled);
            }
        }
        if before.as_ref() != Some(&state) {
            this.save(&state)?;
        }
        Ok(this)
    }

    /// All that the driver holds.
    pub fn read(&self) -> Result<State, StateError> {
        let _lock = self.lock("lock")?;
        self.load()
    }

    /// Every GPU instance, by GPU index and id.
    pub fn instances(&self) -> Result<Vec<Instance>, StateError> {
        Ok(self.read()?.instances())
    }

    /// Makes a GPU instance with a full-width compute instance, as another program would: at the given start, or
    /// where the driver puts it.
    pub fn create_instance(
        &self,
        gpu_uuid: &str,
        profile: &str,
        start: Option<u32>,
    ) -> Result<Instance, StateError> {
        let what = || format!("create {profile} on {gpu_uuid}");
        self.change(gpu_uuid, what, |model, index, gpu| {
            let profile = model.by_name(profile).ok_or(Code::INVALID_ARGUMENT)?;
            let at = start.map(|start| Placement { start, size: profile.size });
            let id = driver::create_gpu_instance(model, gpu, profile.id, at)?;
            driver::create_compute_instance(model, gpu, id, profile.full_compute_profile())?;
            Ok(gpu.row(index, gpu.gpu_instance(id)?))
        })
    }

    /// Removes a GPU instance with its compute instances, as another program would.
    pub fn destroy_instance(&self, gpu_uuid: &str, gpu_instance_id: u32) -> Result<(), StateError> {
        let what = || format!("destroy GPU instance {gpu_instance_id} of {gpu_uuid}");
        self.change(gpu_uuid, what, |_, _, gpu| {
            let compute = &gpu.gpu_instance(gpu_instance_id)?.compute_instances;
            for ci in compute.iter().map(|c| c.id).collect::<Vec<_>>() {
                driver::destroy_compute_instance(gpu, gpu_instance_id, ci)?;
            }
            driver::destroy_gpu_instance(gpu, gpu_instance_id)
        })
    }

    /// Lets a process compute in a slice, or on a whole GPU without MIG mode.
    pub fn add_process(&self, uuid: &str, pid: u32) -> Result<(), StateError> {
        self.on_device("add process", uuid, pid, driver::add_process)
    }

    /// Ends a process in a slice or on a whole GPU.
    pub fn remove_process(&self, uuid: &str, pid: u32) -> Result<(), StateError> {
        self.on_device("remove process", uuid, pid, driver::remove_process)
    }

    /// Sets the MIG mode of a GPU, whoever has NVML open.
    pub fn set_mig_mode(&self, gpu_uuid: &str, enable: bool) -> Result<(), StateError> {
        let what = || format!("set the MIG mode of {gpu_uuid}");
        self.change(gpu_uuid, what, |_, _, gpu| driver::set_mig_mode(gpu, enable, Ok(())))
    }

    /// Lets a GPU fall off the bus: XID 79, and every call on it fails with `GPU_IS_LOST`.
    pub fn lose_gpu(&self, gpu_uuid: &str) -> Result<(), StateError> {
        /// "GPU has fallen off the bus" (NVIDIA's list of XIDs).
        const OFF_THE_BUS: u64 = 79;
        let _lock = self.lock("lock")?;
        let mut state = self.load()?;
        let (index, gpu) = find(&mut state, gpu_uuid).ok_or_else(|| not_found("lose", gpu_uuid))?;
        gpu.lost = true;
        // Before anybody can see that it is lost: waiting ends with the loss once no event is left.
        self.post([Event::xid(index, OFF_THE_BUS, None, None)])?;
        self.save(&state)
    }

    /// Resets a GPU, as through its bus: what was lost is found again, its instances are gone, and so is the MIG mode from
    /// Hopper on. NVML clients are not asked; a process that computes on a GPU that is not lost refuses it (`IN_USE`).
    pub fn reset_gpu(&self, gpu_uuid: &str) -> Result<(), StateError> {
        let done = self.update(|state| {
            let (_, gpu) = find(state, gpu_uuid).ok_or(Code::NOT_FOUND)?;
            driver::reset(tables::model(&gpu.model).map_err(|_| Code::UNKNOWN)?, gpu)
        })?;
        done.map_err(|code| StateError::Refused { what: format!("reset {gpu_uuid}"), code })
    }

    /// Unloads the driver and loads it again: what [`Self::reset_gpu`] does, for every GPU. Refused (`IN_USE`) while a process
    /// computes or an NVML session is open, as the kernel refuses to remove a module in use.
    pub fn reload_driver(&self) -> Result<(), StateError> {
        let mut sessions = Ok(0);
        let done = self.update(|state| {
            sessions = self.open_sessions();
            if !matches!(sessions, Ok(0)) {
                return Err(Code::IN_USE);
            }
            state
                .gpus
                .iter_mut()
                .try_for_each(|gpu| driver::reset(tables::model(&gpu.model).map_err(|_| Code::UNKNOWN)?, gpu))
        })?;
        let what = format!("reload the driver, with {} NVML sessions open", sessions?);
        done.map_err(|code| StateError::Refused { what, code })
    }

    /// Reports an XID error of a GPU, or of one of its GPU instances or compute instances, to whoever waits for events.
    pub fn xid(
        &self,
        gpu_uuid: &str,
        xid: u64,
        gpu_instance_id: Option<u32>,
        compute_instance_id: Option<u32>,
    ) -> Result<(), StateError> {
        let _lock = self.lock("lock")?;
        let mut state = self.load()?;
        let (index, gpu) = find(&mut state, gpu_uuid).ok_or_else(|| not_found("XID", gpu_uuid))?;
        let there = match (gpu_instance_id, compute_instance_id) {
            (Some(gi), Some(ci)) => gpu.compute_instance(gi, ci).map(|_| ()),
            (Some(gi), None) => gpu.gpu_instance(gi).map(|_| ()),
            (None, None) => Ok(()),
            (None, Some(_)) => Err(Code::INVALID_ARGUMENT),
        };
        there.map_err(|code| StateError::Refused { what: format!("XID {xid} on {gpu_uuid}"), code })?;
        self.post([Event::xid(index, xid, gpu_instance_id, compute_instance_id)])
    }

    /// How many processes have NVML initialised.
    pub fn sessions(&self) -> Result<usize, StateError> {
        let _lock = self.lock("lock")?;
        self.open_sessions()
    }

    /// Counts the locked files and removes those that dead processes left. The caller holds `lock`.
    fn open_sessions(&self) -> Result<usize, StateError> {
        let path = self.dir.join(SESSIONS);
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(|source| StateError::Io { path: path.clone(), source })?,
        };
        let mut open = 0;
        for entry in entries.filter_map(Result::ok) {
            match File::open(entry.path()).map(|file| file.try_lock()) {
                Ok(Err(fs::TryLockError::WouldBlock)) => open += 1,
                // Gone meanwhile, or left behind; what cannot be removed does not count all the same.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(open)
    }

    /// Opens a session, which ends when the result is dropped or the process dies.
    pub(crate) fn enter(&self) -> Result<SessionFile, StateError> {
        let _lock = self.lock("lock")?;
        let folder = self.dir.join(SESSIONS);
        // A process id alone is not unique: containers have their own.
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = folder.join(format!("{}-{since_epoch}", std::process::id()));
        let take = || {
            fs::create_dir_all(&folder)?;
            let file = File::create_new(&path)?;
            file.lock()?;
            Ok(file)
        };
        let file = take().map_err(|source| StateError::Io { path: path.clone(), source })?;
        Ok(SessionFile { path, _locked: file })
    }

    fn on_device(
        &self,
        what: &str,
        uuid: &str,
        pid: u32,
        f: fn(&mut Gpu, &str, u32) -> NvmlResult<()>,
    ) -> Result<(), StateError> {
        let done = self.update(|state| {
            let mut results = state.gpus.iter_mut().map(|gpu| f(gpu, uuid, pid));
            results.find(|r| *r != Err(Code::NOT_FOUND)).unwrap_or(Err(Code::NOT_FOUND))
        })?;
        done.map_err(|code| StateError::Refused { what: format!("{what} {pid} in {uuid}"), code })
    }

    fn change<T>(
        &self,
        gpu_uuid: &str,
        what: impl FnOnce() -> String,
        f: impl FnOnce(&Model, u32, &mut Gpu) -> NvmlResult<T>,
    ) -> Result<T, StateError> {
        let done = self.update(|state| {
            let (index, gpu) = find(state, gpu_uuid).ok_or(Code::NOT_FOUND)?;
            let model = tables::model(&gpu.model).map_err(|_| Code::UNKNOWN)?;
            if gpu.lost {
                return Err(Code::GPU_IS_LOST);
            }
            f(model, index, gpu)
        })?;
        done.map_err(|code| StateError::Refused { what: what(), code })
    }

    /// Changes the state. What the operation did is kept only if it succeeded.
    fn update<T>(&self, f: impl FnOnce(&mut State) -> NvmlResult<T>) -> Result<NvmlResult<T>, StateError> {
        self.transact(|state| {
            let mut trial = state.clone();
            let done = f(&mut trial);
            if done.is_ok() {
                *state = trial;
            }
            done
        })
    }

    /// Reads the state, lets `f` see and change it, and writes it back if it changed. Instances that came or went are an event.
    pub(crate) fn transact<T>(&self, f: impl FnOnce(&mut State) -> T) -> Result<T, StateError> {
        let _lock = self.lock("lock")?;
        let before = self.load()?;
        let mut state = before.clone();
        let result = f(&mut state);
        if state != before {
            self.save(&state)?;
            self.post(events::mig_config_changes(&before, &state))?;
        }
        Ok(result)
    }

    /// Appends events. The caller holds `lock`.
    fn post(&self, new: impl IntoIterator<Item = Event>) -> Result<(), StateError> {
        let mut new = new.into_iter().peekable();
        if new.peek().is_none() {
            return Ok(());
        }
        let mut events = self.events()?;
        new.for_each(|event| events.push(event));
        self.replace(EVENTS, &events)
    }

    /// The latest events.
    pub(crate) fn events(&self) -> Result<Events, StateError> {
        let path = self.dir.join(EVENTS);
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Events::default()),
            Err(source) => Err(StateError::Io { path, source }),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| StateError::Corrupt { path, reason: e.to_string() }),
        }
    }

    /// Waits for this GPU's turn, which ends when the result is dropped.
    pub(crate) fn lock_gpu(&self, index: u32) -> Result<File, StateError> {
        self.lock(&format!("gpu-{index}.lock"))
    }

    /// Takes a lock. Each call opens the file anew, so that threads exclude each other as processes do.
    fn lock(&self, name: &str) -> Result<File, StateError> {
        let path = self.dir.join(name);
        let take = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        take().map_err(|source| StateError::Io { path: path.clone(), source })
    }

    fn file(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    fn load(&self) -> Result<State, StateError> {
        let path = self.file();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StateError::Absent { path }),
            // Not UTF-8.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(StateError::Corrupt { path, reason: e.to_string() });
            }
            Err(source) => return Err(StateError::Io { path, source }),
            Ok(text) => text,
        };
        let parsed = serde_json::from_str::<State>(&text).map_err(|e| e.to_string());
        let checked = parsed.and_then(|state| state.check().map(|()| state));
        checked.map_err(|reason| StateError::Corrupt { path, reason })
    }

    fn save(&self, state: &State) -> Result<(), StateError> {
        self.replace(STATE, state)
    }

    fn replace(&self, name: &str, content: &impl serde::Serialize) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let scratch = self.dir.join(format!("{name}.tmp"));
        let write = || {
            // Not synced to disk: after a power failure the instances are gone anyway.
            fs::write(&scratch, serde_json::to_vec_pretty(content)?)?;
            fs::rename(&scratch, &path)
        };
        write().map_err(|source| StateError::Io { path: path.clone(), source })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

/// The mark of an open session.
pub(crate) struct SessionFile {
    path: PathBuf,
    _locked: File,
}

impl Drop for SessionFile {
    fn drop(&mut self) {
        // Nothing is lost if it stays: only its lock counts.
        let _ = fs::remove_file(&self.path);
    }
}

fn find<'a>(state: &'a mut State, gpu_uuid: &str) -> Option<(u32, &'a mut Gpu)> {
    (0..).zip(&mut state.gpus).find(|(_, gpu)| gpu.uuid == gpu_uuid)
}

fn not_found(what: &str, gpu_uuid: &str) -> StateError {
    StateError::Refused { what: format!("{what} {gpu_uuid}"), code: Code::NOT_FOUND }
}

/// The GPUs that a configuration describes, as they are before anybody touches them.
fn configured_gpus(config: &Config) -> Vec<Gpu> {
    let seed = config.seed();
    let gpus = (0..).zip(config.each_gpu()).map(|(index, group)| Gpu {
        uuid: ids::gpu_uuid(&seed, index),
        model: group.model.clone(),
        mig_enabled: group.mig_mode == MigMode::Enabled,
        mig_pending: group.mig_mode == MigMode::Enabled,
        created: 0,
        lost: false,
        processes: Vec::new(),
        gpu_instances: Vec::new(),
    });
    gpus.collect()
}

fn difference(held: &[Gpu], configured: &[Gpu]) -> Option<String> {
    if held.len() != configured.len() {
        return Some(format!("{} instead of {}", held.len(), configured.len()));
    }
    let differ = |(h, c): &(&Gpu, &Gpu)| h.uuid != c.uuid || h.model != c.model;
    let (h, c) = held.iter().zip(configured).find(differ)?;
    Some(format!("{} {} instead of {} {}", h.model, h.uuid, c.model, c.uuid))
}
