//! The GPU models that can be simulated without one: those of the NVML simulator.

use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use slicegate_core::geometry::{Model, Profile};
use slicegate_core::profile::ProfileName;

/// By the name that is used here, and NVML's.
static MODELS: LazyLock<Vec<(String, Arc<Model>)>> = LazyLock::new(|| {
    let tables: Tables = serde_json::from_str(include_str!("../../nvml-sim/data/mig_profiles.json"))
        .unwrap_or(Tables { models: Vec::new() });
    tables.models.into_iter().filter_map(Table::model).collect()
});

#[derive(Deserialize)]
struct Tables {
    models: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    model: String,
    name: String,
    memory_slices: Option<u8>,
    profiles: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    id: Option<u32>,
    units: Option<u8>,
    starts: Vec<u8>,
    max: u8,
    #[serde(rename = "memoryMiB")]
    memory_mib: Option<u64>,
}

impl Table {
    /// The model; `None` where too little is known of it.
    fn model(self) -> Option<(String, Arc<Model>)> {
        let profiles: Option<Vec<Profile>> = self.profiles.into_iter().map(Row::profile).collect();
        let model = Model { name: self.name.into(), units: self.memory_slices?, profiles: profiles? };
        Some((self.model, Arc::new(model)))
    }
}

impl Row {
    fn profile(self) -> Option<Profile> {
        let mut starts = self.starts;
        starts.sort_unstable();
        Some(Profile {
            name: ProfileName::verbatim(&self.name),
            id: self.id?,
            size: self.units?,
            starts,
            max_count: self.max,
            memory_mib: self.memory_mib.unwrap_or_default(),
        })
    }
}

/// The model of a name; `Err` names those that there are.
pub fn find(name: &str) -> Result<Arc<Model>, String> {
    let mut models = MODELS.iter();
    let found = models.find(|(key, model)| key == name || *model.name == *name);
    found.map(|(_, model)| model.clone()).ok_or_else(|| {
        let known: Vec<&str> = MODELS.iter().map(|(key, _)| key.as_str()).collect();
        format!("there is no GPU model {name:?}; use one of {}", known.join(", "))
    })
}

/// The short name of a model.
pub fn short(model: &Model) -> &str {
    let known = MODELS.iter().find(|(_, known)| known.name == model.name);
    known.map_or(&model.name, |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_either_name() {
        let model = find("A100-80GB").unwrap();
        assert_eq!(*model, *find("NVIDIA A100-SXM4-80GB").unwrap());
        assert_eq!((model.units, model.profiles.len(), short(&model)), (8, 7, "A100-80GB"));
        assert_eq!(find("RTX-PRO-6000-96GB").unwrap().units, 12);
        let error = find("A100").unwrap_err();
        assert!(error.contains("\"A100\"") && error.contains("H100-SXM5-80GB"), "{error}");
        assert!(
            MODELS.iter().all(|(_, model)| model.profiles.iter().all(|p| p.name.as_str().contains("gb")))
        );
    }

    #[test]
    fn no_set_of_slices_has_more_memory_by_name_than_its_gpu_is_said_to() {
        for (name, model) in MODELS.iter() {
            let most = model.most_gib();
            let gib = |p: &Profile| u64::from(p.name.memory_gib().unwrap());
            // What fits by itself, as often as it does.
            let alone = model.profiles.iter().map(|p| gib(p) * u64::from(p.max_count)).max();
            assert!(Some(most) >= alone, "{name}: {most}, and {alone:?}");
            // Whatever is added to: units do not hold more than the profile that has the most in each.
            let dense = |p: &Profile| (gib(p) * u64::from(model.units)).div_ceil(u64::from(p.size));
            let densest = model.profiles.iter().map(dense).max();
            assert!(Some(most) <= densest, "{name}: {most}, and {densest:?}");
        }
        assert_eq!(find("H200-141GB").unwrap().most_gib(), 143);
    }
}
