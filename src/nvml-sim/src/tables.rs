//! What each GPU model can do: `data/mig_profiles.json`, parsed once.

use std::sync::LazyLock;

use serde::Deserialize;

/// By key; a model that cannot be simulated says what is unknown of it.
type Table = Vec<(String, Result<Model, &'static str>)>;

static TABLE: LazyLock<Result<Table, String>> = LazyLock::new(|| {
    let raw: RawTables =
        serde_json::from_str(include_str!("../data/mig_profiles.json")).map_err(|e| e.to_string())?;
    Ok(raw.models.iter().map(|m| (m.model.clone(), m.resolve())).collect())
});

/// SMs of a GPU whose number is unknown, so that a full-width compute instance still has the most.
const ASSUMED_SM: u32 = 132;

#[derive(Deserialize)]
struct RawTables {
    models: Vec<RawModel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawModel {
    model: String,
    name: String,
    architecture: String,
    compute_slices: u32,
    memory_slices: Option<u32>,
    sm: Option<u32>,
    pci_device_id: Option<String>,
    profiles: Vec<RawProfile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    name: String,
    id: Option<u32>,
    #[serde(rename = "enum")]
    profile_enum: String,
    slices: u32,
    units: Option<u32>,
    starts: Vec<u32>,
    max: u32,
    #[serde(rename = "memoryMiB")]
    memory_mib: Option<u64>,
    sm: Option<u32>,
    engines: [Option<u32>; 5],
    p2p: bool,
    graphics: bool,
}

/// A GPU model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// The name used in configurations, such as `A100-80GB`.
    pub key: String,
    /// The name that `nvmlDeviceGetName` reports.
    pub name: String,
    /// In lower case, such as `ampere`.
    pub architecture: String,
    /// Also the largest number of MIG devices.
    pub compute_slices: u32,
    /// The number of placement units.
    pub memory_slices: u32,
    /// `nvmlPciInfo_t.pciDeviceId`.
    pub pci_device_id: u32,
    /// The GPU instance profiles that the model has.
    pub profiles: Vec<Profile>,
}

/// A GPU instance profile of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// `1g.10gb+me`
    pub name: String,
    /// `nvmlGpuInstanceProfileInfo_t.id`: the argument of every call but the profile queries.
    pub id: u32,
    /// `NVML_GPU_INSTANCE_PROFILE_*`: the argument of the profile queries.
    pub profile_enum: u32,
    /// Compute slices.
    pub slices: u32,
    /// Placement units.
    pub size: u32,
    /// The placement table's starts, in the driver's order.
    pub starts: Vec<u32>,
    /// How many of the profile a GPU can have.
    pub max_count: u32,
    /// `memorySizeMB`, in MiB as NVML means it.
    pub memory_mib: u64,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Engine counts.
    pub engines: Engines,
    /// Whether instances can use peer-to-peer transfers.
    pub p2p: bool,
    /// Whether instances can use graphics APIs.
    pub graphics: bool,
    /// How it shares the media engines.
    pub media: Media,
}

/// Engine counts of a profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engines {
    /// Copy engines.
    pub copy: u32,
    /// Video decoders.
    pub decoder: u32,
    /// Video encoders.
    pub encoder: u32,
    /// JPEG decoders.
    pub jpeg: u32,
    /// Optical flow accelerators.
    pub ofa: u32,
}

/// How a profile shares the media engines (nvml.h, `NVML_GPU_INSTANCE_PROFILE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Media {
    /// Its share.
    Share,
    /// `+me` (REV1): the media extensions, of which a GPU has one set.
    Extensions,
    /// `+me.all`: every media engine of the GPU.
    All,
    /// `-me`: none.
    None,
}

/// Why a model cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No model has this key.
    #[error("gpus: there is no model {model:?}; use one of {known}")]
    Unknown {
        /// The key asked for.
        model: String,
        /// The keys there are.
        known: String,
    },
    /// Too little is known about the model.
    #[error(
        "gpus: the {what} of {model} are not publicly known, so it cannot be simulated; use one of {known}"
    )]
    Incomplete {
        /// The key asked for.
        model: String,
        /// What is unknown.
        what: &'static str,
        /// The keys of models that are known well enough.
        known: String,
    },
    /// A defect of this crate.
    #[error("the built-in profile table is broken: {0}")]
    Table(String),
}

/// The model with this key.
pub fn model(key: &str) -> Result<&'static Model, ModelError> {
    match table()?.iter().find(|(k, _)| k == key) {
        Some((_, Ok(model))) => Ok(model),
        Some((_, Err(what))) => {
            Err(ModelError::Incomplete { model: key.to_owned(), what, known: models()?.join(", ") })
        }
        None => Err(ModelError::Unknown { model: key.to_owned(), known: models()?.join(", ") }),
    }
}

/// The keys of the models that can be simulated.
pub fn models() -> Result<Vec<&'static str>, ModelError> {
    let usable = table()?.iter().filter(|(_, model)| model.is_ok());
    Ok(usable.map(|(key, _)| key.as_str()).collect())
}

fn table() -> Result<&'static Table, ModelError> {
    TABLE.as_ref().map_err(|e| ModelError::Table(e.clone()))
}

impl RawModel {
    fn resolve(&self) -> Result<Model, &'static str> {
        let memory_slices = self.memory_slices.ok_or("placement units")?;
        let profiles = self.profiles.iter().map(|p| self.resolve_profile(p));
        Ok(Model {
            key: self.model.clone(),
            name: self.name.clone(),
            architecture: self.architecture.clone(),
            compute_slices: self.compute_slices,
            memory_slices,
            pci_device_id: self.pci_device_id.as_deref().map_or(0, hex),
            profiles: profiles.collect::<Result<_, _>>()?,
        })
    }

    fn resolve_profile(&self, raw: &RawProfile) -> Result<Profile, &'static str> {
        let share = self.sm.unwrap_or(ASSUMED_SM) / self.compute_slices;
        let [copy, decoder, encoder, jpeg, ofa] = raw.engines.map(Option::unwrap_or_default);
        Ok(Profile {
            name: raw.name.clone(),
            id: raw.id.ok_or("profile ids")?,
            profile_enum: profile_enum(&raw.profile_enum).ok_or("profile enums")?,
            slices: raw.slices,
            size: raw.units.ok_or("placement sizes")?,
            starts: raw.starts.clone(),
            max_count: raw.max,
            memory_mib: raw.memory_mib.unwrap_or_else(|| named_gb(&raw.name) * 1024),
            sm_count: raw.sm.unwrap_or(raw.slices * share),
            engines: Engines { copy, decoder, encoder, jpeg, ofa },
            p2p: raw.p2p,
            graphics: raw.graphics,
            media: media(&raw.profile_enum),
        })
    }
}

impl Model {
    /// The profile with this `info.id`.
    pub fn by_id(&self, id: u32) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.id == id)
    }

    /// The profile with this `NVML_GPU_INSTANCE_PROFILE_*`.
    pub fn by_enum(&self, profile_enum: u32) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.profile_enum == profile_enum)
    }

    /// The profile with this name.
    pub fn by_name(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.name == name)
    }

    /// The memory of the whole GPU: that of its full profile.
    pub fn memory_mib(&self) -> u64 {
        self.profiles.iter().map(|p| p.memory_mib).max().unwrap_or(0)
    }

    /// Ampere keeps the MIG mode in the `InfoROM` and changes it by a reset; later architectures need no reset for it and
    /// lose it at one, as with the driver and at a reboot.
    pub fn keeps_mig_mode(&self) -> bool {
        self.architecture == "ampere"
    }
}

/// `NVML_GPU_INSTANCE_PROFILE_*` without its prefix.
fn profile_enum(name: &str) -> Option<u32> {
    Some(match name {
        "1_SLICE" => 0x0,
        "2_SLICE" => 0x1,
        "3_SLICE" => 0x2,
        "4_SLICE" => 0x3,
        "7_SLICE" => 0x4,
        "8_SLICE" => 0x5,
        "6_SLICE" => 0x6,
        "1_SLICE_REV1" => 0x7,
        "2_SLICE_REV1" => 0x8,
        "1_SLICE_REV2" => 0x9,
        "1_SLICE_GFX" => 0xA,
        "2_SLICE_GFX" => 0xB,
        "4_SLICE_GFX" => 0xC,
        "1_SLICE_NO_ME" => 0xD,
        "2_SLICE_NO_ME" => 0xE,
        "1_SLICE_ALL_ME" => 0xF,
        "2_SLICE_ALL_ME" => 0x10,
        "3_SLICE_GFX" => 0x11,
        _ => return None,
    })
}

fn media(profile_enum: &str) -> Media {
    if profile_enum.ends_with("_REV1") {
        Media::Extensions
    } else if profile_enum.ends_with("_ALL_ME") {
        Media::All
    } else if profile_enum.ends_with("_NO_ME") {
        Media::None
    } else {
        Media::Share
    }
}

/// `20` of `1g.20gb+me`.
fn named_gb(name: &str) -> u64 {
    let rest = name.split_once("g.").map_or("", |(_, rest)| rest);
    rest.split_once("gb").and_then(|(gb, _)| gb.parse().ok()).unwrap_or(0)
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

impl Profile {
    /// The compute instance profile that takes the whole instance: `NVML_COMPUTE_INSTANCE_PROFILE_*` by slices.
    pub fn full_compute_profile(&self) -> u32 {
        match self.slices {
            1 => 0,
            2 => 1,
            3 => 2,
            4 => 3,
            _ => 4,
        }
    }
}
