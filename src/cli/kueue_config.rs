//! `kubectl slices kueue-config`: what Kueue needs to be told so that one quota counts the memory of slices of every profile, and
//! whether it has been told.

mod configuration;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

use super::Error;
use crate::api::gpu_memory::UNITS;
use crate::api::kueue::{ClusterQueue, LocalQueue};
use crate::api::names::GPU_MEMORY;
use crate::api::{MIGNode, gpu_memory};
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
        let queues = Api::<ClusterQueue>::all(client.clone()).list(&ListParams::default()).await;
        let queues =
            queues.map_err(|error| Error::Kueue(format!("cannot list ClusterQueues: {error}")))?.items;
        differences.extend(uncovered(&queues));
        differences.extend(barred(client, &live, &queues).await?);
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

/// What makes Kueue count the memory of slices: one for each profile, in order of memory. In namespaces that count GPU memory,
/// pods ask for it themselves, too, and templates of Jobs do not; so that counts nothing, and the profiles alone do.
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
    let ignored = UNITS.map(|unit| Transformation {
        input: unit.resource.to_owned(),
        strategy: Strategy::Replace,
        multiply_by: None,
        outputs: BTreeMap::new(),
    });
    counted.chain(ignored).collect()
}

fn print(transformations: Vec<Transformation>) -> Result<String, Error> {
    let resources = Section { transformations, ..Section::default() };
    let text = serde_saphyr::to_string(&Configuration { resources });
    let text = text.map_err(|error| Error::Output(error.to_string()))?;
    Ok(format!(
        "# For Kueue's Configuration: key {KEY} of ConfigMap kueue-manager-config in namespace kueue-system. Restart Kueue\n\
         # afterwards, and let each ClusterQueue that lends MIG profiles lend {GPU_MEMORY}, too (whole GiB, as in the names of\n\
         # profiles). What pods of namespaces that count GPU memory ask for by themselves is replaced by nothing: Jobs do not,\n\
         # and are to count the same.\n{text}"
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
fn uncovered(queues: &[ClusterQueue]) -> impl Iterator<Item = String> {
    let lacking = queues.iter().filter(|queue| {
        covered(queue).any(|name| name.starts_with(RESOURCE_PREFIX))
            && !covered(queue).any(|name| name == GPU_MEMORY)
    });
    lacking.map(|queue| {
        format!(
            "ClusterQueue {} lends MIG profiles and not {GPU_MEMORY}, so it admits none",
            queue.name_any()
        )
    })
}

/// The namespaces whose pods are given GPU memory that their ClusterQueues neither lend nor ignore: Kueue admits none of these.
async fn barred(client: Client, live: &Configuration, queues: &[ClusterQueue]) -> Result<Vec<String>, Error> {
    let all = ListParams::default();
    let namespaces = Api::<Namespace>::all(client.clone()).list(&all).await;
    let namespaces = namespaces.map_err(|error| Error::Kueue(format!("cannot list namespaces: {error}")))?;
    let local_queues = Api::<LocalQueue>::all(client).list(&all).await;
    let local_queues =
        local_queues.map_err(|error| Error::Kueue(format!("cannot list LocalQueues: {error}")))?;
    let mut lines = BTreeSet::new();
    for namespace in namespaces {
        let given = gpu_memory::units(namespace.labels());
        let given = given.iter().map(|unit| unit.resource).filter(|resource| !live.ignores(resource));
        let given: Vec<&str> = given.collect();
        let here = local_queues.iter().filter(|queue| queue.namespace() == namespace.metadata.name);
        for name in here.map(|queue| &queue.spec.cluster_queue) {
            let Some(queue) = queues.iter().find(|queue| queue.name_any() == *name) else { continue };
            let lacking = given.iter().filter(|given| !covered(queue).any(|name| name == **given));
            lines.extend(lacking.map(|resource| {
                format!(
                    "namespace {} gives its pods {resource}, which ClusterQueue {name} neither lends nor ignores, so it admits \
                     no pods, groups or Deployments from there that ask for MIG profiles",
                    namespace.name_any()
                )
            }));
        }
    }
    Ok(lines.into_iter().collect())
}

/// The resources that a ClusterQueue lends.
fn covered(queue: &ClusterQueue) -> impl Iterator<Item = &String> {
    queue.spec.resource_groups.iter().flat_map(|group| &group.covered_resources)
}
