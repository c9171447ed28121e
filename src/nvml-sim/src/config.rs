//! The configuration file of the simulator.
//!
//! ```
//! # use nvml_sim::{Config, config::MigMode};
//! let config: Config = serde_json::from_str(r#"{
//!     "stateDir": "/var/lib/slicegate-nvml-sim/node-1",
//!     "node": "node-1",
//!     "gpus": [
//!         {"model": "A100-80GB", "count": 8},
//!         {"model": "H100-SXM5-80GB", "count": 1, "migMode": "disabled"}
//!     ],
//!     "latencyMs": {"nvmlDeviceCreateGpuInstanceWithPlacement": 130, "nvmlGpuInstanceDestroy": 100},
//!     "faults": [{"function": "nvmlGpuInstanceDestroy", "nth": 3, "code": 19, "times": 1}]
//! }"#)?;
//! assert_eq!(config.gpus[1].mig_mode, MigMode::Disabled);
//! # Ok::<_, serde_json::Error>(())
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    names::FUNCTIONS,
    tables::{self, ModelError},
};

/// The environment variable that names the configuration file.
pub const CONFIG_ENV: &str = "SLICEGATE_NVML_SIM_CONFIG";

const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// What the simulated node has and how it misbehaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Where the driver's state lives. Two nodes need two directories.
    pub state_dir: PathBuf,
    /// What `nvmlSystemGetDriverVersion` reports.
    #[serde(default = "default_driver_version")]
    pub driver_version: String,
    /// The GPUs, group after group in index order.
    pub gpus: Vec<GpuGroup>,
    /// The node's name. Makes the GPU UUIDs, and so everything derived from them, independent of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What the GPU UUIDs are derived from, if not from `node` or else the state directory's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid_seed: Option<String>,
    /// Identifies the boot. When it differs from the state's, the instances are gone, as after a reboot.
    /// Default: the kernel's boot id.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// How long a call takes, by function name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency_ms: BTreeMap<String, u64>,
    /// Calls that must fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// Some GPUs of one model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GpuGroup {
    /// A model of `data/mig_profiles.json`, such as `A100-80GB`.
    pub model: String,
    /// How many.
    pub count: u32,
    /// Their MIG mode.
    #[serde(default)]
    pub mig_mode: MigMode,
    /// Whether they are passed through to a virtual machine, from where they cannot be reset: a MIG mode that needs a
    /// reset then stays pending (`RESET_REQUIRED`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passthrough: bool,
    /// Names that NVML reports in place of the profile table's, as a later driver may.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profile_names: BTreeMap<String, String>,
}

/// The MIG mode that a GPU has before anybody changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigMode {
    /// On.
    #[default]
    Enabled,
    /// Off.
    Disabled,
    /// There is none: a GPU that cannot be partitioned.
    Unsupported,
}

/// Lets calls of a function fail, without any other effect.
///
/// Calls are counted in the state, across processes and sessions, from the first session whose configuration has a
/// fault for the function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// The NVML function.
    pub function: String,
    /// The first call that fails, counted from 1.
    pub nth: u64,
    /// The NVML return code of the failure.
    pub code: u32,
    /// How many calls in a row fail.
    #[serde(default = "one")]
    pub times: u64,
}

/// Why a configuration cannot be used. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The environment variable is not set.
    #[error("{CONFIG_ENV} is not set; set it to the path of the simulator's configuration file")]
    NoEnv,
    /// The file cannot be read.
    #[error("{path}: cannot be read ({source}); {CONFIG_ENV} must name the simulator's configuration file", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: not a simulator configuration: {reason}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why the content of a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("stateDir must be an absolute path, not {0:?}: several processes must find the same one")]
    RelativeStateDir(PathBuf),
    #[error("profileNames: {model} has no profile {profile:?}; name one of its own")]
    Profile { model: String, profile: String },
    #[error("gpus: at most 254 GPUs, not {0}")]
    TooManyGpus(u32),
    #[error(
        "{field}: {function:?} is not a function of the simulator; use the NVML name, such as nvmlGpuInstanceDestroy"
    )]
    Function { field: &'static str, function: String },
    #[error("faults: nth and times of {0} start at 1")]
    Nth(String),
    #[error("faults: code 0 of {0} is success; name an NVML error code, such as 23")]
    NoError(String),
}

impl Config {
    /// A configuration with the given GPUs and defaults for the rest.
    pub fn new(state_dir: impl Into<PathBuf>, model: &str, count: u32) -> Self {
        Self {
            state_dir: state_dir.into(),
            driver_version: default_driver_version(),
            gpus: vec![GpuGroup {
                model: model.to_owned(),
                count,
                mig_mode: MigMode::Enabled,
                passthrough: false,
                profile_names: BTreeMap::new(),
            }],
            node: None,
            uuid_seed: None,
            boot_id: None,
            latency_ms: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// Reads the file that [`CONFIG_ENV`] names.
    pub fn from_env() -> Result<Self, ConfigError> {
        let path = std::env::var_os(CONFIG_ENV).ok_or(ConfigError::NoEnv)?;
        Self::from_file(Path::new(&path))
    }

    /// Reads and checks a configuration file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Missing { path: path.to_owned(), source })?;
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason };
        let config: Self = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        config.check().map_err(|e| invalid(e.to_string()))?;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<(), ContentError> {
        if !self.state_dir.is_absolute() {
            return Err(ContentError::RelativeStateDir(self.state_dir.clone()));
        }
        for group in &self.gpus {
            let model = tables::model(&group.model)?;
            if let Some(profile) = group.profile_names.keys().find(|name| model.by_name(name).is_none()) {
                return Err(ContentError::Profile { model: group.model.clone(), profile: profile.clone() });
            }
        }
        // One PCI bus per GPU, and bus 0 belongs to the host.
        let total = self.gpus.iter().fold(0u32, |n, g| n.saturating_add(g.count));
        if total > 254 {
            return Err(ContentError::TooManyGpus(total));
        }
        let known = |field, function: &String| {
            if FUNCTIONS.contains(&function.as_str()) {
                Ok(())
            } else {
                Err(ContentError::Function { field, function: function.clone() })
            }
        };
        for function in self.latency_ms.keys() {
            known("latencyMs", function)?;
        }
        for fault in &self.faults {
            known("faults", &fault.function)?;
            if fault.nth == 0 || fault.times == 0 {
                return Err(ContentError::Nth(fault.function.clone()));
            }
            if fault.code == 0 {
                return Err(ContentError::NoError(fault.function.clone()));
            }
        }
        Ok(())
    }

    /// The group of each GPU, in index order.
    pub(crate) fn each_gpu(&self) -> impl Iterator<Item = &GpuGroup> {
        self.gpus.iter().flat_map(|group| std::iter::repeat_n(group, group.count as usize))
    }

    /// The boot that this configuration describes.
    pub(crate) fn current_boot_id(&self) -> io::Result<String> {
        match &self.boot_id {
            Some(id) => Ok(id.clone()),
            None => Ok(fs::read_to_string(BOOT_ID_FILE)?.trim().to_owned()),
        }
    }

    /// What the GPU UUIDs are derived from.
    pub(crate) fn seed(&self) -> String {
        self.uuid_seed
            .clone()
            .or_else(|| self.node.clone())
            .unwrap_or_else(|| self.state_dir.to_string_lossy().into_owned())
    }
}

fn default_driver_version() -> String {
    "580.95.05".to_owned()
}

fn one() -> u64 {
    1
}
