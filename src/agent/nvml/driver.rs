//! GPUs and slices in the core's terms.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nvml_wrapper::error::NvmlError as WrapperError;
use nvml_wrapper::{Device, Nvml};
use slicegate_core::agent::Compute;
use slicegate_core::geometry::{Model, Profile, Slice};
use slicegate_core::id::GpuUuid;
use slicegate_core::profile::ProfileName;

use super::error::{Activation, CreateError, NvmlError, code};
use super::raw::{self, ComputeProfile, GpuInstance, Mig};
use crate::agent::metrics::Metrics;
use crate::api::mig_node::MigMode;

/// Why NVML cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no library.
    #[error(
        "cannot load the NVIDIA driver library {}: {source}; install the NVIDIA driver, mount it into the agent's container, \
         or name another with --nvml-library",
        .path.display()
    )]
    Library {
        /// Where it was looked for.
        path: PathBuf,
        /// What the loader said.
        source: WrapperError,
    },
    /// The library is there and does not start.
    #[error("NVML does not start: {0}; see whether nvidia-smi works on the node")]
    Init(WrapperError),
    /// The library lacks what MIG needs.
    #[error("the NVIDIA driver {version} is too old for MIG by placement: {} is missing; install driver 525 or later", .missing.join(", "))]
    TooOld {
        /// The driver's version.
        version: String,
        /// The functions that it lacks.
        missing: Vec<&'static str>,
    },
}

/// A GPU.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    /// Its UUID.
    pub uuid: GpuUuid,
    /// Its index.
    pub index: u32,
    /// What it can be cut into; no profiles when it cannot be.
    pub model: Arc<Model>,
    /// MIG mode.
    pub mig_mode: MigMode,
}

/// A GPU instance as NVML lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// NVML's GPU instance id.
    pub id: u32,
    /// Profile and place.
    pub slice: Slice,
    /// The one compute instance over its full width; `None` when there is none, or another.
    pub compute: Option<Compute>,
    /// Processes in it.
    pub processes: Vec<u32>,
}

/// NVML, loaded. Dropping it shuts NVML down, so that the driver can be upgraded; whoever holds it holds the driver.
pub struct Driver {
    nvml: Nvml,
    version: String,
    metrics: Option<Arc<Metrics>>,
    tables: Mutex<BTreeMap<u32, Arc<Tables>>>,
}

/// What does not change while the driver is loaded: a GPU's profiles with NVML's numbers for them.
struct Tables {
    model: Arc<Model>,
    /// All that NVML has, those that `model` leaves out as well.
    profiles: Vec<raw::Profile>,
    compute: Mutex<BTreeMap<u32, Vec<ComputeProfile>>>,
}

impl Tables {
    /// Profile and place of an instance.
    fn place(&self, instance: GpuInstance) -> Slice {
        let known = self.model.profiles.iter().find(|p| p.id == instance.profile_id);
        Slice {
            start: u8::try_from(instance.start).unwrap_or(u8::MAX),
            size: u8::try_from(instance.size).unwrap_or(u8::MAX),
            profile: known.map_or_else(|| ProfileName::unknown(instance.profile_id), |p| p.name.clone()),
        }
    }

    fn compute_profiles(
        &self,
        mig: &Mig<'_>,
        instance: GpuInstance,
    ) -> Result<Vec<ComputeProfile>, NvmlError> {
        let mut known = self.compute.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(profiles) = known.get(&instance.profile_id) {
            return Ok(profiles.clone());
        }
        let profiles = mig.compute_profiles(instance)?;
        known.insert(instance.profile_id, profiles.clone());
        Ok(profiles)
    }

    /// The compute instance profile over the full width: all compute slices, the most multiprocessors, the lowest id.
    fn full_width(&self, mig: &Mig<'_>, instance: GpuInstance) -> Result<Option<ComputeProfile>, NvmlError> {
        let width = self.profiles.iter().find(|p| p.id == instance.profile_id).map(|p| p.compute_slices);
        let profiles = self.compute_profiles(mig, instance)?;
        Ok(profiles
            .into_iter()
            .filter(|p| Some(p.slices) == width)
            .max_by_key(|p| (p.multiprocessors, std::cmp::Reverse(p.id))))
    }
}

impl Driver {
    /// Loads NVML from `library`, or from where the system has it.
    pub fn open(library: Option<&Path>, metrics: Option<Arc<Metrics>>) -> Result<Self, OpenError> {
        let mut builder = Nvml::builder();
        if let Some(path) = library {
            builder.lib_path(path.as_os_str());
        }
        let nvml = builder.init().map_err(|error| match error {
            WrapperError::LibloadingError(_) => OpenError::Library {
                path: library.unwrap_or(Path::new("libnvidia-ml.so")).to_owned(),
                source: error,
            },
            other => OpenError::Init(other),
        })?;
        let version = nvml.sys_driver_version().unwrap_or_else(|_| "of unknown version".to_owned());
        let missing = raw::missing_functions(&nvml);
        if !missing.is_empty() {
            return Err(OpenError::TooOld { version, missing });
        }
        Ok(Self { nvml, version, metrics, tables: Mutex::default() })
    }

    /// The NVIDIA driver's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The GPUs of the node, and what is wrong with those that do not answer: they must not take the others with them.
    pub fn gpus(&self) -> Result<(Vec<GpuInfo>, Vec<String>), NvmlError> {
        let count = self.count()?;
        let (mut gpus, mut problems) = (Vec::new(), Vec::new());
        for index in 0..count {
            match self.gpu(index) {
                Ok(gpu) => gpus.push(gpu),
                Err(error) => problems.push(format!("GPU {index} does not answer: {error}")),
            }
        }
        Ok((gpus, problems))
    }

    fn gpu(&self, index: u32) -> Result<GpuInfo, NvmlError> {
        let device = self.device(index)?;
        let uuid = Self::uuid(&device)?;
        let mig_mode = match device.mig_mode() {
            Ok(mode) if mode.current == 1 => MigMode::Enabled,
            Ok(_) => MigMode::Disabled,
            Err(WrapperError::NotSupported) => MigMode::NotSupported,
            Err(error) => return Err(wrapped("nvmlDeviceGetMigMode", error)),
        };
        let tables = self.tables(index)?;
        Ok(GpuInfo { uuid, index, model: tables.model.clone(), mig_mode })
    }

    /// The minor number of a GPU, as in `/dev/nvidia<minor>`. A change of the MIG mode may change it.
    pub fn minor_number(&self, index: u32) -> Result<u32, NvmlError> {
        self.device(index)?.minor_number().map_err(|e| wrapped("nvmlDeviceGetMinorNumber", e))
    }

    /// Processes that compute on a GPU, in its instances included.
    pub fn processes(&self, index: u32) -> Result<Vec<u32>, NvmlError> {
        Mig::of(&self.nvml, &self.device(index)?).whole_processes()
    }

    /// Asks for MIG mode. That it was taken does not mean that it is on: see [`Activation`].
    pub fn enable_mig_mode(&self, index: u32) -> Result<Activation, NvmlError> {
        let status = self.timed("set_mig_mode", || {
            self.device(index)?.set_mig_mode(true).map_err(|e| wrapped("nvmlDeviceSetMigMode", e))
        })?;
        // The change may have reset the GPU, which makes its handle another.
        let mode = self.device(index)?.mig_mode().map_err(|e| wrapped("nvmlDeviceGetMigMode", e))?;
        Ok(if mode.current == 1 { Activation::Active } else { Activation::Pending { index, status } })
    }

    /// The GPU instances of a GPU, whoever made them. One of a profile that [`GpuInfo::model`] lacks is named
    /// [`ProfileName::unknown`].
    pub fn instances(&self, index: u32) -> Result<Vec<Found>, NvmlError> {
        let tables = self.tables(index)?;
        let device = self.device(index)?;
        let mig = Mig::of(&self.nvml, &device);
        let mut listed = Vec::new();
        for profile in &tables.profiles {
            match mig.instances(profile.id) {
                Ok(instances) => listed.extend(instances),
                // MIG mode is off.
                Err(NvmlError { code: code::NOT_SUPPORTED, .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        let devices = if listed.is_empty() { Vec::new() } else { mig.devices()? };
        listed
            .into_iter()
            .map(|instance| {
                let inside: Vec<_> = devices.iter().filter(|d| d.instance == instance.id).collect();
                let full = tables.full_width(&mig, instance)?;
                let whole = match (full, inside.as_slice()) {
                    (Some(full), [only]) => {
                        mig.computes(instance, full.id)?.iter().any(|c| c.id == only.compute)
                    }
                    _ => false,
                };
                Ok(Found {
                    id: instance.id,
                    slice: tables.place(instance),
                    compute: whole.then(|| Compute { id: inside[0].compute, uuid: inside[0].uuid.clone() }),
                    processes: inside.iter().flat_map(|d| d.processes.clone()).collect(),
                })
            })
            .collect()
    }

    /// Makes a slice: a GPU instance at exactly its place and a compute instance over its full width, or nothing.
    pub fn create(&self, index: u32, slice: &Slice) -> Result<Found, CreateError> {
        let tables = self.tables(index).map_err(CreateError::Instance)?;
        let device = self.device(index).map_err(CreateError::Instance)?;
        let mig = Mig::of(&self.nvml, &device);
        let profile = tables
            .model
            .profile(&slice.profile)
            .ok_or_else(|| CreateError::NoProfile(slice.profile.to_string()))?;
        let instance = self
            .timed("create_gpu_instance", || {
                mig.create_instance(profile.id, slice.start.into(), slice.size.into())
            })
            .map_err(CreateError::Instance)?;
        let compute = tables.full_width(&mig, instance).and_then(|full| {
            let full = full.ok_or(NvmlError {
                call: "nvmlGpuInstanceGetComputeInstanceProfileInfo",
                code: code::NOT_FOUND,
            })?;
            self.timed("create_compute_instance", || mig.create_compute(instance, full.id))
        });
        let compute = match compute {
            Ok(compute) => compute,
            Err(cause) => {
                return Err(match self.timed("destroy_gpu_instance", || mig.destroy_instance(instance)) {
                    Ok(()) => CreateError::Compute(cause),
                    Err(rollback) => CreateError::Stuck { id: instance.id, cause, rollback },
                });
            }
        };
        let uuid = mig
            .devices()
            .ok()
            .into_iter()
            .flatten()
            .find(|d| d.instance == instance.id && d.compute == compute.id)
            .map(|d| d.uuid);
        match uuid {
            Some(uuid) => Ok(Found {
                id: instance.id,
                slice: tables.place(instance),
                compute: Some(Compute { id: compute.id, uuid }),
                processes: Vec::new(),
            }),
            None => Err(CreateError::NoDevice {
                id: instance.id,
                compute: Compute { id: compute.id, uuid: String::new() },
            }),
        }
    }

    /// Destroys a GPU instance and what is in it, if it is still the one that is meant; one that is gone is destroyed.
    pub fn destroy(&self, index: u32, id: u32, slice: &Slice) -> Result<(), NvmlError> {
        let tables = self.tables(index)?;
        let device = self.device(index)?;
        let mig = Mig::of(&self.nvml, &device);
        let instance = match mig.instance(id) {
            Ok(instance) => instance,
            Err(NvmlError { code: code::NOT_FOUND, .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if tables.place(instance) != *slice {
            return Ok(());
        }
        for profile in tables.compute_profiles(&mig, instance)? {
            for compute in mig.computes(instance, profile.id)? {
                self.timed("destroy_compute_instance", || mig.destroy_compute(compute))?;
            }
        }
        self.timed("destroy_gpu_instance", || mig.destroy_instance(instance))
    }

    pub(super) fn nvml(&self) -> &Nvml {
        &self.nvml
    }

    pub(super) fn count(&self) -> Result<u32, NvmlError> {
        self.nvml.device_count().map_err(|e| wrapped("nvmlDeviceGetCount_v2", e))
    }

    pub(super) fn uuid(device: &Device<'_>) -> Result<GpuUuid, NvmlError> {
        device.uuid().map(GpuUuid::from).map_err(|e| wrapped("nvmlDeviceGetUUID", e))
    }

    pub(super) fn device(&self, index: u32) -> Result<Device<'_>, NvmlError> {
        self.nvml.device_by_index(index).map_err(|e| wrapped("nvmlDeviceGetHandleByIndex_v2", e))
    }

    fn tables(&self, index: u32) -> Result<Arc<Tables>, NvmlError> {
        if let Some(tables) = self.tables.lock().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return Ok(tables.clone());
        }
        let device = self.device(index)?;
        let name = device.name().map_err(|e| wrapped("nvmlDeviceGetName", e))?;
        let mig = Mig::of(&self.nvml, &device);
        let profiles = mig.profiles()?;
        let mut model = Model { name: name.as_str().into(), units: 0, profiles: Vec::new() };
        for profile in &profiles {
            // NVML prefixes the name; a profile whose name is not one, such as a later driver's, cannot be asked for.
            let Ok(name) = profile.name.trim_start_matches("MIG ").parse::<ProfileName>() else { continue };
            let placements = mig.placements(profile.id)?;
            let Some(size) = placements.first().and_then(|(_, size)| u8::try_from(*size).ok()) else {
                continue;
            };
            let mut starts: Vec<u8> = placements.iter().filter_map(|(s, _)| u8::try_from(*s).ok()).collect();
            starts.sort_unstable();
            let end = starts.last().map_or(0, |start| start.saturating_add(size));
            model.units = model.units.max(end);
            // NVML reports a wrong count for the A30 (mig-parted works around the same); no more fit than there are starts.
            let most = u8::try_from(profile.instance_count)
                .unwrap_or(u8::MAX)
                .min(u8::try_from(starts.len()).unwrap_or(u8::MAX));
            model.profiles.push(Profile {
                name,
                id: profile.id,
                size,
                starts,
                max_count: most,
                memory_mib: profile.memory_mib,
            });
        }
        let tables = Arc::new(Tables { model: Arc::new(model), profiles, compute: Mutex::default() });
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(index, tables.clone());
        Ok(tables)
    }

    fn timed<T>(&self, call: &str, operation: impl FnOnce() -> Result<T, NvmlError>) -> Result<T, NvmlError> {
        let begun = Instant::now();
        let result = operation();
        if let Some(metrics) = &self.metrics {
            metrics.nvml_call(call, result.is_ok(), begun.elapsed());
        }
        result
    }
}

/// nvml-wrapper's error as a code again.
fn wrapped(call: &'static str, error: WrapperError) -> NvmlError {
    let code = match error {
        // To nvml-wrapper, a function that the library lacks is an unknown error.
        WrapperError::FailedToLoadSymbol(_) => code::FUNCTION_NOT_FOUND,
        other => other.into(),
    };
    NvmlError { call, code }
}
