//! How it stands with one workload and why, for people: the plan's own judgement of each node, which changes nothing.

use std::collections::BTreeMap;

use super::place::selects;
use super::shortage::all_pods;
use super::{Cause, Limits, Pass, Snapshot};
use crate::id::{Attempt, GpuUuid, NodeName, WorkloadUid};
use crate::ledger::{Ledger, NoFit};
use crate::node::Node;
use crate::quota::Standing;
use crate::time::Timestamp;
use crate::workload::{Demand, PodSetDemand, Workload};

/// The most moves that are counted.
const MOST_MOVES: usize = 8;

/// How it stands with a workload that has quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Until when it keeps its quota if it goes on finding no room.
    pub until: Timestamp,
    /// Its pod sets that ask for slices; why that is not known, otherwise.
    pub pod_sets: Result<Vec<PodSetView>, String>,
    /// How it stands with the ResourceQuotas that count what its pods will ask for.
    pub quotas: Vec<Standing>,
    /// What it lacks of them.
    pub over_quota: Option<String>,
    /// Room that is kept for it: node, GPU, first unit, units, until when.
    pub kept: Vec<(NodeName, GpuUuid, u8, u8, Timestamp)>,
}

/// A pod set and the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSetView {
    /// Its name.
    pub name: String,
    /// What it asks for, as in "2 pods with 1 × 1g.10gb each".
    pub asks: String,
    /// How many of its pods have slices reserved, by node.
    pub claimed: BTreeMap<NodeName, u32>,
    /// How many have none.
    pub missing: u32,
    /// What these lack; `None` when nothing is missing, or there is room.
    pub lack: Option<(Cause, String)>,
    /// How many slices would have to move for one more pod to find room; `None` when that is no cure, or it is not known.
    pub moves: Option<usize>,
    /// Every node with a MIGNode.
    pub nodes: Vec<NodeView>,
}

/// A node in the view of a pod set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// The node.
    pub name: NodeName,
    /// Placement units of its usable GPUs on which nothing is, and all of them.
    pub units: (u32, u32),
    /// Why one more pod does not fit there; `None` when it does.
    pub why_not: Option<String>,
}

/// Explains how it stands with a workload; `None` when it has no quota, or is over.
pub fn explain(
    now: Timestamp,
    world: &Snapshot,
    limits: &Limits,
    workload: &WorkloadUid,
) -> Option<Explanation> {
    let workload = world.workloads.get(workload)?;
    let reservation = workload.open()?;
    let mut pass = Pass::open(now, world, limits);
    pass.put_in_order();
    pass.open_accounts();
    for other in world.workloads.values().filter(|other| !other.admitted && other.key != workload.key) {
        if other.open().is_some() && other.passed() {
            pass.promise_quota(other);
        }
    }
    // What is let in asks for nothing any more.
    let waits = !workload.admitted;
    let (quotas, over_quota) = if waits { pass.quotas_of(workload) } else { Default::default() };
    // Its own room is not kept from itself.
    pass.lift(|hold| hold.workload.uid == workload.key.uid);
    let pod_sets = match &reservation.demand {
        Demand::Slices(demand) => Ok(pass.views(workload, &reservation.attempt, demand)),
        Demand::Unknown(why) | Demand::Invalid(why) => Err(why.clone()),
    };
    let holds = world.nodes.values().flat_map(|node| {
        let holds = node.mig.iter().flat_map(|mig| &mig.spec.holds);
        holds.map(move |hold| (&node.name, hold))
    });
    let kept = holds.filter(|(_, hold)| hold.workload.uid == workload.key.uid && hold.until > now);
    let kept = kept.map(|(node, hold)| (node.clone(), hold.gpu.clone(), hold.start, hold.size, hold.until));
    let until = workload.held_until(reservation);
    Some(Explanation { until, pod_sets, quotas, over_quota, kept: kept.collect() })
}

impl Pass<'_> {
    /// Pod set by pod set, each beside what those before it would have been given.
    fn views(&mut self, workload: &Workload, attempt: &Attempt, demand: &[PodSetDemand]) -> Vec<PodSetView> {
        let mut before = BTreeMap::new();
        let mut views = Vec::new();
        for pod_set in demand {
            let mut view = self.view(workload, pod_set);
            let placed = self.place_pod_set(&workload.key, attempt, pod_set, &mut before);
            view.lack = placed.err().map(|obstacle| (obstacle.cause, obstacle.message));
            if let Some((Cause::Fragmentation | Cause::Slices, _)) = view.lack {
                let usable = self.admissible(pod_set).unwrap_or_default();
                view.moves = self.moves(pod_set, &usable, MOST_MOVES);
            }
            views.push(view);
        }
        self.restore(before);
        views
    }

    fn view(&self, workload: &Workload, demand: &PodSetDemand) -> PodSetView {
        let uid = &workload.key.uid;
        let books = self.books_of(uid).map(|(name, book)| (name.clone(), book.pods_of(uid, &demand.name)));
        let claimed: BTreeMap<NodeName, u32> = books.filter(|(_, pods)| *pods > 0).collect();
        let missing = demand.pods.saturating_sub(claimed.values().sum());
        let nodes = self.world.nodes.values().filter(|node| node.mig.is_some());
        let nodes = nodes.map(|node| self.view_node(node, demand)).collect();
        let (name, asks) = (demand.name.to_string(), all_pods(demand));
        PodSetView { name, asks, claimed, missing, lack: None, moves: None, nodes }
    }

    fn view_node(&self, node: &Node, demand: &PodSetDemand) -> NodeView {
        let book = self.books.get(&node.name);
        let why_not = match book {
            _ if !selects(node, demand) => Some(
                "not allowed by the flavor, the SlicePolicy, or the pods' selector or affinity".to_owned(),
            ),
            None => Some("its agent has not reported yet".to_owned()),
            Some(book) => {
                self.out_of_service(node, demand).or_else(|| book.try_pod(demand).err().map(reason))
            }
        };
        NodeView { name: node.name.clone(), units: book.map_or((0, 0), Ledger::room), why_not }
    }

    /// What keeps any pod like this off a node.
    fn out_of_service(&self, node: &Node, demand: &PodSetDemand) -> Option<String> {
        let host = node.host.as_ref()?;
        let why = if !host.ready {
            "the node is not ready"
        } else if node.mig.as_ref().is_some_and(|mig| !mig.ready) {
            "its agent is not ready; see condition Ready of the MIGNode"
        } else if !self.fit_for_use(node) {
            "its agent does not answer"
        } else if !demand.constraints.tolerate(&host.traits) {
            "cordoned, or it has a taint that the pods do not tolerate"
        } else {
            return None;
        };
        Some(why.to_owned())
    }
}

fn reason(no_fit: NoFit) -> String {
    match no_fit {
        NoFit::NotOffered(profile) => format!("no GPU there offers {profile}"),
        NoFit::NoRoom(profile) => format!("no room for {profile}"),
        NoFit::Lacks(resource) => format!("short of {resource}"),
    }
}
