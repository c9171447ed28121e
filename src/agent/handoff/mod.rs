//! How slices reach pods: through a kubelet, or, on an emulated node, through a stand-in for one.

pub mod kubelet;
pub mod stand_in;

use std::collections::{BTreeMap, BTreeSet};

use slicegate_core::agent::Holder;
use slicegate_core::geometry::Place;
use slicegate_core::profile::ProfileName;

use kubelet::Kubelet;
use stand_in::StandIn;

/// The slices that pods may be given or have, with GPU index and MIG device, in the order in which they are to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open(pub Vec<(Place, u32, String)>);

/// How far an offer has been taken up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Whether it is known at all what pods can get; if not, the Node is left as it is.
    pub known: bool,
    /// Slices of each profile that the GPUs could hold at most: what the Node's capacity is to show.
    pub capacity: BTreeMap<ProfileName, u32>,
    /// Slices of each profile that pods can be given or have: what the Node's allocatable is to show.
    pub allocatable: BTreeMap<ProfileName, u32>,
    /// Profiles for which exactly what was offered is known to be what pods can get.
    pub settled: BTreeSet<ProfileName>,
}

/// How slices reach pods.
pub enum Handoff {
    /// There is no kubelet.
    StandIn(StandIn),
    /// There is one.
    Kubelet(Box<Kubelet>),
}

impl Handoff {
    /// Whether it is known who has what.
    pub fn knows_enough(&self) -> bool {
        match self {
            Self::StandIn(stand_in) => stand_in.knows_enough(),
            // The journal and NVML say it.
            Self::Kubelet(_) => true,
        }
    }

    /// What holds a slice.
    pub fn holder(&self, place: &Place) -> Option<Holder> {
        match self {
            Self::StandIn(stand_in) => stand_in.holder(place),
            Self::Kubelet(kubelet) => kubelet.holder(place),
        }
    }

    /// Whether the pod that has a slice was told a name of it that is no longer valid.
    pub fn is_misnamed(&self, place: &Place, uuid: &str) -> bool {
        match self {
            Self::StandIn(_) => false,
            Self::Kubelet(kubelet) => kubelet.is_misnamed(place, uuid),
        }
    }

    /// Why a slice cannot be offered though it is whole.
    pub fn obstacle(&self, place: &Place) -> Option<String> {
        match self {
            Self::StandIn(_) => None,
            Self::Kubelet(kubelet) => kubelet.obstacle(place),
        }
    }

    /// Offers slices.
    pub fn offer(&mut self, open: Open, capacity: &BTreeMap<ProfileName, u32>) -> Shown {
        match self {
            Self::StandIn(stand_in) => stand_in.offer(&open, capacity),
            Self::Kubelet(kubelet) => kubelet.offer(open, capacity),
        }
    }

    /// Whether nobody has been given a slice that is no longer offered.
    pub fn is_free(&self, place: &Place) -> bool {
        match self {
            Self::StandIn(stand_in) => stand_in.holder(place).is_none(),
            Self::Kubelet(kubelet) => kubelet.is_free(place),
        }
    }

    /// What stands in the way, for people.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::StandIn(_) => None,
            Self::Kubelet(kubelet) => kubelet.trouble(),
        }
    }
}
