//! `kubectl slices kueue-config`: what Kueue needs to be told so that one quota counts the memory of slices of every profile, and
//! whether it has been told.

mod configuration;

use std::collections::BTreeSet;

use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

use super::Error;
use crate::api::MIGNode;
use crate::api::kueue::ClusterQueue;
use crate::api::names::GPU_MEMORY;
use configuration::{Configuration, QuotaCheckStrategy, Section};
pub use configuration::{Strategy, Transformation};

/// The key under which Kueue's manifests and chart keep its Configuration.
const KEY: &str = "controller_manager_config.yaml";

/// What to print or to compare.
#[derive(Args)]
pub struct KueueConfig {
    /// Whether Kueue counts the profiles themselves beside the memory (Retain), or the memory alone (Replace).
    #[arg(long, value_enum, default_value = "retain")]
    strategy: Strategy,
    /// Compare with the live configuration instead: prints what differs and exits with 1, or says that all is well.
    #[arg(long)]
    check: bool,
    /// Namespace and name of the ConfigMap with Kueue's Configuration.
    #[arg(long, default_value = "kueue-system/kueue-manager-config", value_name = "NAMESPACE/NAME")]
    config_map: String,
}

/// Prints the configuration, or checks the live one.
pub async fn run(client: Client, args: &KueueConfig, nodes: &[MIGNode]) -> Result<String, Error> {
    let profiles = profiles(nodes);
    if profiles.is_empty() {
        return Err(Error::Kueue(
            "no MIGNode tells of a GPU model with MIG profiles yet, so there is nothing to count; see kubectl slices nodes"
                .to_owned(),
        ));
    }
    let wanted = transformations(&profiles, args.strategy);
    if !args.check {
        return print(wanted);
    }
    let live = live(client.clone(), &args.config_map).await?;
    let mut differences = live.differences(&wanted);
    if live.resources.quota_check_strategy != QuotaCheckStrategy::IgnoreUndeclared {
        differences.extend(uncovered(client).await?);
    }
    if differences.is_empty() {
        let count = profiles.len();
        return Ok(format!("{}: {count} profiles are counted in {GPU_MEMORY}.\n", args.config_map));
    }
    Err(Error::Kueue(format!(
        "{} and the ClusterQueues do not count all profiles in {GPU_MEMORY}:\n  {}\nMerge what kubectl slices kueue-config \
         prints, and restart Kueue.",
        args.config_map,
        differences.join("\n  ")
    )))
}

/// The profiles of all GPU models, by name.
fn profiles(nodes: &[MIGNode]) -> BTreeSet<ProfileName> {
    let models = nodes.iter().flat_map(|node| &node.status).flat_map(|status| &status.models);
    models.flat_map(|model| &model.profiles).filter_map(|profile| profile.name.parse().ok()).collect()
}

/// What makes Kueue count the memory of slices: one for each profile, in order of memory.
pub fn transformations<'a>(
    profiles: impl IntoIterator<Item = &'a ProfileName>,
    strategy: Strategy,
) -> Vec<Transformation> {
    let mut sized: Vec<(u32, &ProfileName)> =
        profiles.into_iter().filter_map(|profile| Some((profile.memory_gib()?, profile))).collect();
    sized.sort_unstable();
    let counted = sized.into_iter().map(|(gib, profile)| Transformation {
        input: profile.resource(),
        strategy,
        multiply_by: None,
        outputs: [(GPU_MEMORY.to_owned(), gib.to_string())].into(),
    });
    counted.collect()
}

fn print(transformations: Vec<Transformation>) -> Result<String, Error> {
    let resources = Section { transformations, ..Section::default() };
    let text = serde_saphyr::to_string(&Configuration { resources });
    let text = text.map_err(|error| Error::Output(error.to_string()))?;
    Ok(format!(
        "# For Kueue's Configuration: key {KEY} of ConfigMap kueue-manager-config in namespace kueue-system. Restart Kueue\n\
         # afterwards, and let each ClusterQueue that lends MIG profiles lend {GPU_MEMORY}, too (whole GiB, as in the names of\n\
         # profiles).\n{text}"
    ))
}

async fn live(client: Client, config_map: &str) -> Result<Configuration, Error> {
    let (namespace, name) = config_map
        .split_once('/')
        .ok_or_else(|| Error::Kueue(format!("--config-map {config_map}: expected NAMESPACE/NAME")))?;
    let found = Api::<ConfigMap>::namespaced(client, namespace).get_opt(name).await;
    let found =
        found.map_err(|error| Error::Kueue(format!("cannot read ConfigMap {config_map}: {error}")))?;
    let found = found.ok_or_else(|| {
        Error::Kueue(format!("ConfigMap {config_map} does not exist; name Kueue's own with --config-map"))
    })?;
    let text = found.data.as_ref().and_then(|data| data.get(KEY));
    let text = text.ok_or_else(|| Error::Kueue(format!("ConfigMap {config_map} has no key {KEY}")))?;
    serde_saphyr::from_str(text)
        .map_err(|error| Error::Kueue(format!("key {KEY} of ConfigMap {config_map} cannot be read: {error}")))
}

/// The ClusterQueues that lend MIG profiles but not their memory: Kueue admits nothing that they cannot count.
async fn uncovered(client: Client) -> Result<Vec<String>, Error> {
    let queues = Api::<ClusterQueue>::all(client).list(&ListParams::default()).await;
    let queues = queues.map_err(|error| Error::Kueue(format!("cannot list ClusterQueues: {error}")))?;
    let lacking = queues.items.iter().filter(|queue| {
        let covered = || queue.spec.resource_groups.iter().flat_map(|group| &group.covered_resources);
        covered().any(|name| name.starts_with(RESOURCE_PREFIX)) && !covered().any(|name| name == GPU_MEMORY)
    });
    let line = |queue: &ClusterQueue| {
        format!(
            "ClusterQueue {} lends MIG profiles and not {GPU_MEMORY}, so it admits none",
            queue.name_any()
        )
    };
    Ok(lacking.map(line).collect())
}
