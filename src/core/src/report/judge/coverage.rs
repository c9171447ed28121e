//! What is lent of what there is, and what is lent that is not there.

use std::collections::BTreeSet;

use super::{Judge, plural};
use crate::id::NodeName;
use crate::profile::ProfileName;
use crate::report::books::Lines;
use crate::report::desk::slices_of;
use crate::report::input::{Name, Unit};
use crate::report::mismatch::{Code, Found};

impl Judge<'_> {
    /// A ClusterQueue's flavors and their GPUs.
    pub(super) fn check_coverage(&self, queue: &Name, lines: &Lines, found: &mut Found) {
        let checked = self.desk.world.queues.get(queue).is_some_and(|queue| queue.checked);
        if checked && lines.is_empty() {
            found.note(
                Code::NoMIGResource,
                "It asks for an AdmissionCheck of Slicegate and covers no MIG resource".to_owned(),
            );
        }
        for (flavor, quotas) in lines {
            if quotas.values().all(|line| line.nominal == 0) {
                continue;
            }
            let nodes = self.desk.nodes_for(queue, flavor);
            if let Some(lack) = self.lack_of_nodes(flavor, &nodes) {
                found.note(Code::FlavorWithoutNodes, lack);
                continue;
            }
            let uncovered: Vec<ProfileName> =
                self.desk.area(&nodes).offers().into_keys().filter(|p| !self.is_lent(p, &nodes)).collect();
            if !uncovered.is_empty() {
                let names = uncovered.iter().map(ProfileName::as_str).collect::<Vec<_>>().join(", ");
                let which = plural("profile", uncovered.len());
                let what = format!(
                    "flavor {flavor}: its GPUs offer the {which} {names}, which no ClusterQueue lends"
                );
                found.note(Code::ProfileNotCovered, what);
            }
        }
    }

    fn lack_of_nodes(&self, flavor: &Name, nodes: &BTreeSet<&NodeName>) -> Option<String> {
        if self.desk.with_gpus(nodes) > 0 {
            return None;
        }
        let world = self.desk.world;
        let Some(labels) = world.flavors.get(flavor) else {
            return Some(format!("flavor {flavor}: there is no ResourceFlavor of that name"));
        };
        let all = self.desk.nodes.get(flavor).map_or(0, BTreeSet::len);
        Some(if all == 0 {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("flavor {flavor}: no node has the labels {}", labels.join(", "))
        } else if nodes.is_empty() {
            format!("flavor {flavor}: the SlicePolicy of its AdmissionCheck allows none of its nodes")
        } else {
            format!("flavor {flavor}: no node with its labels has a GPU with MIG mode on")
        })
    }

    /// Whether anybody lends a profile of these nodes, by its name or by its memory, in whatever flavor.
    fn is_lent(&self, profile: &ProfileName, nodes: &BTreeSet<&NodeName>) -> bool {
        let here = |flavor: &Name| self.desk.nodes.get(flavor).is_some_and(|all| !all.is_disjoint(nodes));
        let books = self.desk.queues.values().chain(self.desk.cohort_lines.values()).map(|(lines, _)| lines);
        books.flatten().filter(|(flavor, _)| here(flavor)).any(|(_, lines)| {
            let by_name = slices_of(lines).any(|(lent, line)| lent == profile && line.nominal > 0);
            // Where profiles are lent beside their memory, a workload needs quota of both.
            let memory = lines.get(&Unit::Memory).is_some_and(|line| line.nominal > 0);
            by_name || memory && slices_of(lines).next().is_none()
        })
    }
}
