//! The part of Kueue's Configuration that says what is counted (Kueue `apis/config/v1beta2/configuration_types.go`).

use std::collections::BTreeMap;

use clap::ValueEnum;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use crate::api::convert::pod::amount;
use crate::api::names::GPU_MEMORY;

/// `Configuration`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// What is counted.
    #[serde(default)]
    pub resources: Section,
}

/// `Configuration.resources`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Section {
    /// What is left out before anything is transformed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_resource_prefixes: Vec<String>,
    /// What becomes of resources before they are counted.
    pub transformations: Vec<Transformation>,
    /// What becomes of those that a ClusterQueue does not lend.
    #[serde(skip_serializing_if = "QuotaCheckStrategy::is_default")]
    pub quota_check_strategy: QuotaCheckStrategy,
}

/// `Configuration.resources.quotaCheckStrategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaCheckStrategy {
    /// They keep a workload from being admitted.
    #[default]
    BlockUndeclared,
    /// They do not count.
    IgnoreUndeclared,
}

impl QuotaCheckStrategy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `Configuration.resources.transformations[]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transformation {
    /// The resource that pods ask for.
    pub input: String,
    /// Whether it counts as well.
    #[serde(default)]
    pub strategy: Strategy,
    /// The resource whose amount the outputs are multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiply_by: Option<String>,
    /// What counts for one of it; if nothing does, and it is replaced, it does not count at all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
}

/// `Configuration.resources.transformations[].strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Strategy {
    /// The input counts, too.
    #[default]
    Retain,
    /// Only the outputs count.
    Replace,
}

impl Configuration {
    /// What of this would not be as wanted, a line each.
    pub fn differences(&self, wanted: &[Transformation]) -> Vec<String> {
        wanted.iter().filter_map(|wanted| self.difference(wanted)).collect()
    }

    /// Whether Kueue takes no notice of a resource that pods ask for, whatever ClusterQueues lend.
    pub fn ignores(&self, resource: &str) -> bool {
        let resources = &self.resources;
        let replaced = |t: &Transformation| {
            t.input == resource && t.strategy == Strategy::Replace && t.outputs.is_empty()
        };
        resources.exclude_resource_prefixes.iter().any(|prefix| resource.starts_with(prefix))
            || resources.transformations.iter().any(replaced)
    }

    fn difference(&self, wanted: &Transformation) -> Option<String> {
        let input = &wanted.input;
        if wanted.outputs.is_empty() {
            return (!self.ignores(input)).then(|| {
                format!(
                    "{input} counts as pods ask for it themselves, which they do in namespaces that count GPU memory, and not by \
                     their profiles alone"
                )
            });
        }
        let prefix =
            self.resources.exclude_resource_prefixes.iter().find(|prefix| input.starts_with(*prefix));
        if let Some(prefix) = prefix {
            return Some(format!(
                "{input} is left out by excludeResourcePrefixes {prefix} before it is transformed"
            ));
        }
        let Some(live) = self.resources.transformations.iter().find(|t| t.input == *input) else {
            return Some(format!("{input} has no transformation"));
        };
        if let Some(multiplier) = &live.multiply_by {
            return Some(format!("{input} is multiplied by {multiplier}"));
        }
        let gib = |t: &Transformation| {
            let quantity = t.outputs.get(GPU_MEMORY)?;
            amount(GPU_MEMORY, &Quantity(quantity.clone()))
        };
        match (gib(live), gib(wanted)) {
            (Some(live), Some(wanted)) if live != wanted => {
                Some(format!("{input} counts as {live} of {GPU_MEMORY}, not {wanted}"))
            }
            (None, Some(wanted)) => Some(format!("{input} does not count as {wanted} of {GPU_MEMORY}")),
            _ if live.strategy != wanted.strategy => {
                Some(format!("{input} has strategy {:?}, not {:?}", live.strategy, wanted.strategy))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use slicegate_core::profile::ProfileName;

    use super::*;
    use crate::cli::kueue_config::transformations;

    fn read(resources: &str) -> Configuration {
        serde_saphyr::from_str(&format!("apiVersion: config.kueue.x-k8s.io/v1beta2\n{resources}")).unwrap()
    }

    fn differences(resources: &str, strategy: Strategy) -> Vec<String> {
        let profiles = ["1g.10gb", "1g.10gb+me"].map(|name| name.parse::<ProfileName>().unwrap());
        read(resources).differences(&transformations(&profiles, strategy))
    }

    #[test]
    fn what_is_printed_is_found_to_be_right() {
        let profiles = ["1g.10gb", "1g.10gb+me"].map(|name| name.parse::<ProfileName>().unwrap());
        for strategy in [Strategy::Retain, Strategy::Replace] {
            let wanted = transformations(&profiles, strategy);
            let resources = Section { transformations: wanted.clone(), ..Section::default() };
            let text = serde_saphyr::to_string(&Configuration { resources }).unwrap();
            let live: Configuration = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(live.differences(&wanted), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn each_way_to_count_otherwise_is_told() {
        let one = |rest: &str| {
            format!(
                "resources:\n  transformations:\n  - {{input: nvidia.com/mig-1g.10gb.me, outputs: {{slicegate.dev/gpu-memory: 10}}}}\n  \
                 - {{input: nvidia.com/mig-1g.10gb{rest}}}\n  \
                 - {{input: slicegate.dev/gpu-memory, strategy: Replace}}\n  \
                 excludeResourcePrefixes: [instaslice.redhat.com/]\n"
            )
        };
        let cases = [
            (
                ", outputs: {slicegate.dev/gpu-memory: '9728'}",
                "counts as 9728 of slicegate.dev/gpu-memory, not 10",
            ),
            (", outputs: {example.com/other: '10'}", "does not count as 10 of slicegate.dev/gpu-memory"),
            (
                ", outputs: {slicegate.dev/gpu-memory: much}",
                "does not count as 10 of slicegate.dev/gpu-memory",
            ),
            (", outputs: {slicegate.dev/gpu-memory: 10}, multiplyBy: cpu", "is multiplied by cpu"),
            (
                ", outputs: {slicegate.dev/gpu-memory: 10}, strategy: Replace",
                "has strategy Replace, not Retain",
            ),
        ];
        for (rest, told) in cases {
            assert_eq!(differences(&one(rest), Strategy::Retain), [format!("nvidia.com/mig-1g.10gb {told}")]);
        }
        let good = one(", outputs: {slicegate.dev/gpu-memory: '10'}");
        assert_eq!(differences(&good, Strategy::Retain), Vec::<String>::new());
        assert_eq!(differences(&good, Strategy::Replace).len(), 2);
        assert_eq!(differences("", Strategy::Retain).len(), 4, "nothing is configured");
        let excluded =
            differences(&good.replace("instaslice.redhat.com/]", "nvidia.com/]"), Strategy::Retain);
        assert!(excluded[0].contains("left out by excludeResourcePrefixes nvidia.com/"), "{excluded:?}");
        assert_eq!(excluded.len(), 3, "{excluded:?}");
        let twice =
            differences(&good.replace("gpu-memory, strategy: Replace", "gpu-memory"), Strategy::Retain);
        assert_eq!(twice.len(), 1, "{twice:?}");
        assert!(twice[0].starts_with("slicegate.dev/gpu-memory counts as pods ask for it"), "{twice:?}");
    }
}
