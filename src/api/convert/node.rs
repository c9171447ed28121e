//! `Node`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm};
use slicegate_core::constraints::{Effect, Operator, Requirement, Taint, Term, Toleration, Traits};
use slicegate_core::node::Host;
use slicegate_core::resources::Resources;

use super::pod::{amount, comes_with_slices};
use crate::api::names;

/// What of a Node matters, with nothing used of it yet.
pub fn host(node: &Node) -> Host {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let allocatable: Resources = status
        .allocatable
        .unwrap_or_default()
        .iter()
        // MIG slices are counted in the MIGNode: what the Node shows of them only follows.
        .filter(|(name, _)| !comes_with_slices(name))
        .filter_map(|(name, quantity)| Some((name.as_str(), amount(name, quantity)?)))
        .collect();
    Host {
        hostname: labels.get(names::HOSTNAME_LABEL).cloned().unwrap_or_default(),
        traits: Traits {
            labels,
            taints: spec.taints.unwrap_or_default().iter().filter_map(taint).collect(),
            unschedulable: spec.unschedulable.unwrap_or(false),
        },
        ready: status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True"),
        allocatable,
        used: Resources::default(),
        bound: BTreeMap::new(),
    }
}

fn taint(taint: &k8s_openapi::api::core::v1::Taint) -> Option<Taint> {
    Some(Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: effect(&taint.effect)?,
    })
}

fn effect(effect: &str) -> Option<Effect> {
    match effect {
        "NoSchedule" => Some(Effect::NoSchedule),
        "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
        "NoExecute" => Some(Effect::NoExecute),
        _ => None,
    }
}

/// A pod's toleration. An operator that only newer schedulers know tolerates nothing.
pub fn toleration(toleration: &k8s_openapi::api::core::v1::Toleration) -> Option<Toleration> {
    let value = match toleration.operator.as_deref() {
        Some("Exists") => None,
        None | Some("" | "Equal") => Some(toleration.value.clone().unwrap_or_default()),
        Some(_) => return None,
    };
    Some(Toleration {
        key: toleration.key.clone().filter(|key| !key.is_empty()),
        value,
        effect: match toleration.effect.as_deref() {
            None | Some("") => None,
            Some(name) => Some(effect(name)?),
        },
    })
}

/// A term of a required node affinity.
pub fn term(term: &NodeSelectorTerm) -> Term {
    let convert = |requirements: &Option<Vec<NodeSelectorRequirement>>| {
        requirements.iter().flatten().map(requirement).collect()
    };
    Term { labels: convert(&term.match_expressions), fields: convert(&term.match_fields) }
}

fn requirement(requirement: &NodeSelectorRequirement) -> Requirement {
    let mut values = requirement.values.clone().unwrap_or_default();
    let operator = match requirement.operator.as_str() {
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt,
        "Lt" => Operator::Lt,
        "In" => Operator::In,
        // Matches nothing: an operator that only newer schedulers know.
        _ => {
            values.clear();
            Operator::In
        }
    };
    Requirement { key: requirement.key.clone(), operator, values }
}
