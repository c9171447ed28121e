//! One node's book: which slices there are and are wanted, who may use how many, what cpu and memory is still free. The
//! plan opens a ledger for each node, enters what it decides, and writes back what has changed.

pub mod load;
mod moved;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::kinds::{Kind, Kinds};
use crate::engine::score::Cost;
use crate::engine::table::{self, State};
use crate::geometry::{Mask, Place, Slice};
use crate::hands::{self, Hands, Heirs};
use crate::id::{Attempt, GpuUuid, NodeName, PodSetName, WorkloadKey, WorkloadUid};
use crate::node::{Claim, Hold, MigNode, NodeSpec, ObservedSlice, Relocation, SliceState};
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::PodSetDemand;

mod kept_room;
pub mod together;
pub use kept_room::{Units, Wait};
use together::Work;

/// Why a slice is on a GPU's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// `spec` wants it.
    Declared,
    /// `spec` does not want it any more; the agent has not destroyed it yet.
    Leaving,
    /// Slicegate did not make it.
    Foreign,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    slice: Slice,
    /// The same in the terms of the GPU's tables; `None` for a foreign instance that they do not know.
    place: Option<table::Place>,
    origin: Origin,
    observed: Option<(SliceState, Timestamp)>,
    /// Whether somebody holds it, even if it is broken: its room is not free.
    held: bool,
    /// Whether who holds it is over, or nobody knows who it is.
    leaving: bool,
}

impl Slot {
    /// A slice that is to be made.
    fn new(slice: Slice, place: table::Place) -> Self {
        let place = Some(place);
        Self { slice, place, origin: Origin::Declared, observed: None, held: false, leaving: false }
    }
    fn is(&self, state: SliceState) -> bool {
        self.observed.is_some_and(|(s, _)| s == state)
    }
    /// Declared, and not known to be broken: what a claim can count on.
    fn counts(&self) -> bool {
        self.origin == Origin::Declared && !self.is(SliceState::Failed)
    }
    /// Made, and schedulable or in use.
    fn whole(&self) -> bool {
        self.is(SliceState::Idle) || self.is(SliceState::InUse)
    }
    /// Whether it could be taken away, if its profile has slices to spare.
    fn yields(&self) -> bool {
        self.origin != Origin::Foreign && !self.is(SliceState::InUse) && !self.is(SliceState::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct GpuBook {
    kind: Arc<Kind>,
    usable: bool,
    slots: Vec<Slot>,
    held: Mask,
}

impl GpuBook {
    fn slices<'a>(
        &'a self,
        filter: impl Fn(&Slot) -> bool + Clone + 'a,
    ) -> impl Iterator<Item = &'a Slice> + Clone {
        self.slots.iter().filter(move |slot| filter(slot)).map(|slot| &slot.slice)
    }
    /// The state of the GPU with nothing on it but the slots that `stays` allows and what is held.
    fn state(&self, stays: impl Fn(&Slot) -> bool) -> State {
        let staying = || self.slots.iter().filter(|slot| stays(slot));
        let strange = staying().filter(|slot| slot.place.is_none());
        let blocked = strange.fold(self.held, |mask, slot| mask.with(slot.slice.mask()));
        self.kind.table.state(staying().filter_map(|slot| slot.place), blocked)
    }
    /// How often the declared slices for which `goes` says so are asked for: see [`PodCost::missed`].
    fn missed(&self, goes: impl Fn(&Slot) -> bool) -> u32 {
        let gone = self.slots.iter().filter(|slot| slot.origin == Origin::Declared && goes(slot));
        gone.filter_map(|slot| slot.place).map(|place| self.kind.millionths(place.profile)).sum()
    }
    /// A slice in the terms of the GPU's tables.
    fn place(&self, slice: &Slice) -> Option<table::Place> {
        let profile = self.kind.table.profile(&slice.profile)?;
        let entry = &self.kind.table.model().profiles[profile];
        let known = entry.size == slice.size && entry.starts.contains(&slice.start);
        known.then_some(table::Place { profile, start: slice.start })
    }
}

/// What it costs to run one more pod on a node; less is better. Field order is the ranking: reuse before creation,
/// creation in free room before displacing idle slices, then placement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodCost {
    /// Slices that must be made.
    pub created: u32,
    /// Idle slices that must go for them.
    pub displaced: u32,
    /// How often those are asked for: the shares of their profiles in what is asked for, in millionths, summed.
    pub missed: u32,
    /// Growth of the potential of the GPUs that are cut: see [`crate::engine::score::Cost`].
    pub potential: i64,
    /// Units left free on them.
    pub free: u32,
}

impl PodCost {
    /// With one more slice that must be made.
    fn with(self, Displaced { slices, missed }: Displaced, cost: Cost) -> Self {
        Self {
            created: self.created + 1,
            displaced: self.displaced + slices,
            missed: self.missed.saturating_add(missed),
            potential: self.potential + cost.potential,
            free: self.free + cost.free,
        }
    }
}

/// Idle slices that must go for another; fewer is better, and of as many those that are asked for least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Displaced {
    slices: u32,
    /// See [`PodCost::missed`].
    missed: u32,
}

/// Why one more pod does not fit on a node. The order says which reason of several nodes is worth telling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoFit {
    /// No GPU of the node has the profile.
    NotOffered(ProfileName),
    /// There is no room for another slice of the profile.
    NoRoom(ProfileName),
    /// There is not enough of another resource.
    Lacks(String),
}

/// A node's book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The node.
    pub name: NodeName,
    gpus: BTreeMap<GpuUuid, GpuBook>,
    claims: Vec<Claim>,
    holds: Vec<Hold>,
    /// The units within which new slices must lie; `None` when they may lie anywhere.
    confined: Option<Units>,
    relocations: Vec<Relocation>,
    /// Whether each slice is made anew after every pod that had it.
    pub remake_after_use: bool,
    /// Whether a new slice goes to the GPU that has the fewest of its profile, and only then where it costs least.
    pub spread: bool,
    claimed: BTreeMap<ProfileName, u32>,
    /// In whose hands the slices are that are in use.
    in_use: Arc<[(ProfileName, Hands)]>,
    heirs: Arc<Heirs>,
    /// How many of them no claim can count on.
    taken: BTreeMap<ProfileName, u32>,
    free: Resources,
}

impl Ledger {
    /// Opens the book of a node: `mig` with `free`, which is what bound pods leave of the node's resources. `hands` says for
    /// each slice that the agent reports, in its order, whose it is, and `heirs` who has taken over from whom.
    ///
    /// What `spec` wants but cannot be (unknown GPU or profile, illegal place, overlap, in the way of a foreign instance)
    /// is left out, and what a pod holds though `spec` does not want it is taken back in.
    pub fn open(
        now: Timestamp,
        name: &NodeName,
        mig: &MigNode,
        kinds: &Kinds,
        free: Resources,
        hands: &[Hands],
        heirs: &Arc<Heirs>,
    ) -> Self {
        let mut gpus: BTreeMap<GpuUuid, GpuBook> = mig
            .gpus
            .iter()
            .map(|(uuid, gpu)| {
                let book = GpuBook {
                    kind: kinds.of(&gpu.model),
                    usable: gpu.usable,
                    slots: Vec::new(),
                    held: Mask::default(),
                };
                (uuid.clone(), book)
            })
            .collect();
        let mut enter =
            |uuid: &GpuUuid, slice: &Slice, origin, observed: Option<&ObservedSlice>, hands: &Hands| {
                let Some(book) = gpus.get_mut(uuid) else { return false };
                // A foreign instance is there, whether or not our tables know how.
                let fits = origin == Origin::Foreign
                    || book.kind.table.model().check(slice, book.slices(|_| true)).is_ok();
                if fits {
                    book.slots.push(Slot {
                        slice: slice.clone(),
                        place: book.place(slice),
                        origin,
                        observed: observed.map(|o| (o.state, o.since)),
                        held: observed.is_some_and(|o| o.state == SliceState::InUse || o.holder.is_some()),
                        leaving: matches!(hands, Hands::Leaving | Hands::Unknown),
                    });
                }
                fits
            };
        let mut in_use = Vec::new();
        // In this order, so that of two that exclude each other the one that cannot go away stays.
        for (uuid, slice) in &mig.foreign {
            enter(uuid, slice, Origin::Foreign, None, &Hands::Unknown);
        }
        let unknown = std::iter::repeat(&Hands::Unknown);
        for (o, hands) in mig.slices.iter().zip(hands.iter().chain(unknown)) {
            let declared = || mig.spec.gpus.get(&o.gpu).is_some_and(|slices| slices.contains(&o.slice));
            match o.state {
                SliceState::InUse => {
                    let entered = enter(&o.gpu, &o.slice, Origin::Declared, Some(o), hands);
                    in_use.extend(entered.then(|| (o.slice.profile.clone(), hands.clone())));
                }
                SliceState::Failed if o.holder.is_some() => {
                    let origin = if declared() { Origin::Declared } else { Origin::Leaving };
                    enter(&o.gpu, &o.slice, origin, Some(o), hands);
                }
                _ => {}
            }
        }
        for (uuid, slices) in &mig.spec.gpus {
            for slice in slices {
                let observed = mig.slices.iter().find(|o| o.gpu == *uuid && o.slice == *slice);
                enter(uuid, slice, Origin::Declared, observed, &Hands::Unknown);
            }
        }
        for o in &mig.slices {
            enter(&o.gpu, &o.slice, Origin::Leaving, Some(o), &Hands::Unknown);
        }
        let holds: Vec<Hold> = mig.spec.holds.iter().filter(|h| h.until > now).cloned().collect();
        let mut claimed: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for claim in &mig.spec.claims {
            *claimed.entry(claim.profile.clone()).or_default() += claim.slices;
        }
        let mut ledger = Self {
            name: name.clone(),
            gpus,
            claims: mig.spec.claims.clone(),
            holds,
            confined: None,
            relocations: mig.spec.relocations.clone(),
            remake_after_use: mig.spec.remake_after_use,
            spread: false,
            claimed,
            in_use: in_use.into(),
            heirs: heirs.clone(),
            taken: BTreeMap::new(),
            free,
        };
        ledger.note_taken();
        ledger.note_held();
        ledger
    }

    /// The node's `spec` as the book has it now.
    pub fn spec(&self) -> NodeSpec {
        let declared = |book: &GpuBook| {
            let mut slices: Vec<Slice> =
                book.slices(|slot| slot.origin == Origin::Declared).cloned().collect();
            slices.sort();
            slices
        };
        NodeSpec {
            gpus: self
                .gpus
                .iter()
                .map(|(uuid, book)| (uuid.clone(), declared(book)))
                .filter(|(_, slices)| !slices.is_empty())
                .collect(),
            claims: self.claims.clone(),
            holds: self.holds.clone(),
            relocations: self.relocations.clone(),
            remake_after_use: self.remake_after_use,
        }
    }

    /// Whether a slice is wanted.
    pub fn declares(&self, gpu: &GpuUuid, slice: &Slice) -> bool {
        self.gpus
            .get(gpu)
            .is_some_and(|book| book.slots.iter().any(|s| s.slice == *slice && s.origin == Origin::Declared))
    }

    /// Slices by profile that are in use and that no claim can count on.
    pub fn taken(&self) -> &BTreeMap<ProfileName, u32> {
        &self.taken
    }

    /// The claims.
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The profiles that the node's usable GPUs offer.
    pub fn offers(&self) -> impl Iterator<Item = &ProfileName> {
        self.gpus
            .values()
            .filter(|b| b.usable)
            .flat_map(|b| b.kind.table.model().profiles.iter().map(|p| &p.name))
    }

    /// Pods of a pod set that have a claim here.
    pub fn pods_of(&self, workload: &WorkloadUid, pod_set: &PodSetName) -> u32 {
        let theirs = self.claims.iter().filter(|c| c.workload.uid == *workload && c.pod_set == *pod_set);
        theirs.map(|c| c.pods).max().unwrap_or(0)
    }

    /// Pods of a pod set that have a claim of this reservation here.
    pub fn pods_within(&self, workload: &WorkloadUid, attempt: &Attempt, pod_set: &PodSetName) -> u32 {
        let theirs = self.claims.iter().filter(|c| c.workload.uid == *workload && c.pod_set == *pod_set);
        theirs.filter(|c| c.attempt == *attempt).map(|c| c.pods).max().unwrap_or(0)
    }

    /// Takes cpu, memory and pod slots of `pods` pods out of what is free.
    pub fn charge(&mut self, requests: &Resources, pods: u32) {
        self.free.add(requests, -i64::from(pods));
    }

    /// Gives them back.
    pub fn refund(&mut self, requests: &Resources, pods: u32) {
        self.free.add(requests, i64::from(pods));
    }

    /// Strikes out the claims for which `drop` says so.
    pub fn drop_claims(&mut self, drop: impl Fn(&Claim) -> bool) -> Vec<Claim> {
        if !self.claims.iter().any(&drop) {
            return Vec::new();
        }
        let (dropped, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.claims).into_iter().partition(drop);
        self.claims = kept;
        for claim in &dropped {
            if let Some(count) = self.claimed.get_mut(&claim.profile) {
                *count = count.saturating_sub(claim.slices);
            }
        }
        self.note_taken();
        dropped
    }

    /// Takes pods out of the claims of a pod set, with the slices that they would have had.
    pub fn unclaim_pods(
        &mut self,
        workload: &WorkloadUid,
        attempt: &Attempt,
        pod_set: &PodSetName,
        pods: u32,
    ) {
        let theirs =
            |c: &Claim| c.workload.uid == *workload && c.attempt == *attempt && c.pod_set == *pod_set;
        if pods == 0 {
            return;
        }
        for claim in self.claims.iter_mut().filter(|claim| theirs(claim) && claim.pods > 0) {
            let each = claim.slices / claim.pods;
            let pods = pods.min(claim.pods);
            claim.pods -= pods;
            claim.slices -= each * pods;
            if let Some(count) = self.claimed.get_mut(&claim.profile) {
                *count = count.saturating_sub(each * pods);
            }
        }
        self.claims.retain(|claim| claim.pods > 0 || !theirs(claim));
        self.note_taken();
    }

    /// Enters the claims for which `wanted` says so as another workload's.
    pub fn transfer_claims(&mut self, wanted: impl Fn(&Claim) -> bool, to: &WorkloadKey, attempt: &Attempt) {
        let (wanted, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.claims).into_iter().partition(wanted);
        self.claims = kept;
        for mut claim in wanted {
            claim.workload = to.clone();
            claim.attempt = attempt.clone();
            self.enter_claim(claim);
        }
        self.note_taken();
    }

    fn enter_claim(&mut self, claim: Claim) {
        match self.claims.iter_mut().find(|c| c.is_for_the_same(&claim)) {
            Some(existing) => {
                existing.slices += claim.slices;
                existing.pods += claim.pods;
            }
            None => self.claims.push(claim),
        }
    }

    /// Makes the slices that claims count on and `spec` lacks, where there is room, and lets go of broken slices once there
    /// are enough whole ones: until then the agent goes on trying, and no place is tried twice in turn. Only claims for which
    /// `counts` says so are worth a new slice. Returns the profiles that stay short though none of their slices is merely
    /// broken.
    pub fn mend(&mut self, counts: impl Fn(&Claim) -> bool) -> Vec<ProfileName> {
        let mut needed: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for claim in self.claims.iter().filter(|claim| counts(claim)) {
            *needed.entry(claim.profile.clone()).or_default() += claim.slices;
        }
        let mut short = Vec::new();
        for (profile, needed) in needed {
            while self.counted(&profile) < needed {
                if self.make(&profile).is_none() {
                    if self.counted(&profile) + self.broken(&profile) < needed {
                        short.push(profile.clone());
                    }
                    break;
                }
            }
        }
        let short_of: Vec<ProfileName> = self
            .claimed
            .iter()
            .filter(|(p, claimed)| self.whole(p) < **claimed)
            .map(|(p, _)| p.clone())
            .collect();
        for book in self.gpus.values_mut() {
            book.slots.retain_mut(|slot| {
                let goes = slot.origin == Origin::Declared
                    && slot.is(SliceState::Failed)
                    && !short_of.contains(&slot.slice.profile);
                if goes {
                    slot.origin = Origin::Leaving;
                }
                !goes || slot.held
            });
        }
        short
    }

    /// What [`Ledger::try_pod`] would cost. What one slice costs is known without trying it.
    pub fn quote(&self, demand: &PodSetDemand) -> Result<PodCost, NoFit> {
        let mut wanted = demand.slices.iter().filter(|(_, count)| **count > 0);
        let (Some((profile, 1)), None) = (wanted.next(), wanted.next()) else {
            return self.try_pod(demand).map(|(cost, _)| cost);
        };
        if let Some(resource) = self.free.first_lacking(&demand.requests) {
            return Err(NoFit::Lacks(resource.to_owned()));
        }
        if !self.offers().any(|offered| offered == profile) {
            return Err(NoFit::NotOffered(profile.clone()));
        }
        if self.reusable(profile) > self.claimed(profile) {
            return Ok(PodCost::default());
        }
        let (displaced, cost, ..) = self.find_place(profile).ok_or_else(|| NoFit::NoRoom(profile.clone()))?;
        Ok(PodCost::default().with(displaced, cost))
    }

    /// Whether one more pod of the pod set fits, and at what cost.
    pub fn try_pod(&self, demand: &PodSetDemand) -> Result<(PodCost, Self), NoFit> {
        if let Some(resource) = self.free.first_lacking(&demand.requests) {
            return Err(NoFit::Lacks(resource.to_owned()));
        }
        let mut book = self.clone();
        let cost = book.take_slices(&demand.slices).or_else(|refusal| {
            // One slice has been tried everywhere.
            let several = matches!(refusal, NoFit::NoRoom(_)) && demand.slices.values().sum::<u32>() > 1;
            let several = several && self.confined.is_none();
            self.clone_into(&mut book);
            let together = several.then(|| book.take_together(&demand.slices, &mut Work::for_pod()));
            together.flatten().ok_or(refusal)
        })?;
        book.charge(&demand.requests, 1);
        Ok((cost, book))
    }

    /// Sets slices aside for one pod: idle ones of the right profile first, then new ones.
    pub fn take_slices(&mut self, slices: &BTreeMap<ProfileName, u32>) -> Result<PodCost, NoFit> {
        let mut total = PodCost::default();
        for (profile, count) in self.largest_first(slices)? {
            for _ in 0..count {
                if self.reusable(&profile) <= self.claimed(&profile) {
                    let (displaced, cost) =
                        self.make(&profile).ok_or_else(|| NoFit::NoRoom(profile.clone()))?;
                    total = total.with(displaced, cost);
                }
                *self.claimed.entry(profile.clone()).or_default() += 1;
            }
        }
        Ok(total)
    }

    /// Enters one more pod into the claims of a pod set, its slices having been taken.
    pub fn claim_pod(&mut self, workload: &WorkloadKey, attempt: &Attempt, demand: &PodSetDemand) {
        for (profile, slices) in &demand.slices {
            self.enter_claim(Claim {
                workload: workload.clone(),
                attempt: attempt.clone(),
                pod_set: demand.name.clone(),
                profile: profile.clone(),
                slices: *slices,
                pods: 1,
            });
        }
        self.note_taken();
    }

    /// Slices that nobody has claimed and that stand idle, with the time since which each does. Of those that are as good, the
    /// ones that have been idle longest.
    pub fn idle_spares(&self) -> Vec<(Place, Timestamp)> {
        let mut idle: BTreeMap<&ProfileName, Vec<(Timestamp, &GpuUuid, &Slice)>> = BTreeMap::new();
        for (uuid, book) in &self.gpus {
            for slot in book.slots.iter().filter(|slot| slot.origin == Origin::Declared) {
                if let Some((SliceState::Idle, since)) = slot.observed {
                    idle.entry(&slot.slice.profile).or_default().push((since, uuid, &slot.slice));
                }
            }
        }
        let mut spares = Vec::new();
        for (profile, mut idle) in idle {
            idle.sort_unstable();
            let spare = self.spare(profile).min(self.spare_whole(profile)) as usize;
            spares.extend(
                idle.into_iter().take(spare).map(|(since, gpu, slice)| (Place::new(gpu, slice), since)),
            );
        }
        spares
    }

    /// Lets go of a slice that is not in use.
    pub fn let_go(&mut self, place: &Place) {
        if let Some(book) = self.gpus.get_mut(&place.gpu) {
            book.slots.retain(|slot| {
                slot.slice != place.slice || slot.origin != Origin::Declared || slot.is(SliceState::InUse)
            });
        }
    }

    /// The book of the same node with nothing of ours on it: what could ever fit.
    #[must_use]
    pub fn emptied(&self, allocatable: Resources) -> Self {
        let mut book = self.clone();
        for gpu in book.gpus.values_mut() {
            gpu.slots.retain(|slot| slot.origin == Origin::Foreign);
            gpu.held = Mask::default();
        }
        book.claims.clear();
        book.claimed.clear();
        book.holds.clear();
        book.confined = None;
        (book.in_use, book.taken) = (Arc::default(), BTreeMap::new());
        book.free = allocatable;
        book
    }

    fn note_taken(&mut self) {
        let in_use = self.in_use.iter().map(|(profile, hands)| (profile, hands));
        self.taken = hands::taken(in_use, &self.claims, &self.heirs);
    }

    fn claimed(&self, profile: &ProfileName) -> u32 {
        self.claimed.get(profile).copied().unwrap_or(0)
    }

    fn count(&self, profile: &ProfileName, filter: impl Fn(&Slot) -> bool) -> u32 {
        let slots = self.gpus.values().flat_map(|b| &b.slots);
        let count = slots.filter(|slot| slot.slice.profile == *profile && filter(slot)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Slices that claims can count on.
    fn counted(&self, profile: &ProfileName) -> u32 {
        self.count(profile, Slot::counts).saturating_sub(self.out_of_reach(profile))
    }

    /// Those of them that are made.
    fn whole(&self, profile: &ProfileName) -> u32 {
        let whole = self.count(profile, |slot| slot.origin == Origin::Declared && slot.whole());
        whole.saturating_sub(self.out_of_reach(profile))
    }

    /// Those of them that are in somebody's hands.
    fn held(&self, profile: &ProfileName) -> u32 {
        let in_use = self.count(profile, |slot| slot.is(SliceState::InUse));
        in_use.saturating_sub(self.out_of_reach(profile))
    }

    fn out_of_reach(&self, profile: &ProfileName) -> u32 {
        self.taken.get(profile).copied().unwrap_or(0)
    }

    fn broken(&self, profile: &ProfileName) -> u32 {
        self.count(profile, |slot| slot.origin == Origin::Declared && slot.is(SliceState::Failed))
    }

    /// How many slices of the profile could be taken away without a claim or a holder noticing.
    fn spare(&self, profile: &ProfileName) -> u32 {
        self.counted(profile).saturating_sub(self.claimed(profile).max(self.held(profile)))
    }

    /// How many whole ones could be taken away: one that is still to be made is no substitute for what was promised.
    fn spare_whole(&self, profile: &ProfileName) -> u32 {
        self.whole(profile).saturating_sub(self.claimed(profile).max(self.held(profile)))
    }

    fn largest_first(&self, slices: &BTreeMap<ProfileName, u32>) -> Result<Vec<(ProfileName, u32)>, NoFit> {
        let size = |profile: &ProfileName| {
            self.gpus
                .values()
                .filter(|b| b.usable)
                .filter_map(|b| b.kind.table.model().profile(profile))
                .map(|p| p.size)
                .max()
        };
        let mut sized = Vec::new();
        for (profile, count) in slices.iter().filter(|(_, count)| **count > 0) {
            sized.push((
                size(profile).ok_or_else(|| NoFit::NotOffered(profile.clone()))?,
                profile.clone(),
                *count,
            ));
        }
        sized.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        Ok(sized.into_iter().map(|(_, profile, count)| (profile, count)).collect())
    }

    /// Declares one more slice of the profile at the best place: in free room if there is any, else where the fewest
    /// spare slices must go. Returns how many went, and the cost of the place.
    fn make(&mut self, profile: &ProfileName) -> Option<(Displaced, Cost)> {
        let (displaced, cost, uuid, place) = self.find_place(profile)?;
        let book = self.gpus.get_mut(&uuid)?;
        let kind = book.kind.clone();
        let model = kind.table.model();
        let size = model.profiles[place.profile].size;
        let slice = Slice { start: place.start, size, profile: profile.clone() };
        book.slots.retain(|slot| !(slot.yields() && model.check(&slice, [&slot.slice]).is_err()));
        book.slots.push(Slot::new(slice, place));
        Some((displaced, cost))
    }

    /// The best place for one more slice of the profile: how many spare slices must go for it, what it costs, and where it is.
    fn find_place(&self, profile: &ProfileName) -> Option<(Displaced, Cost, GpuUuid, table::Place)> {
        let best = match self.confined {
            Some(_) => self.best_place_within(profile),
            None => self.best_free_place(profile).or_else(|| self.best_taken_place(profile)),
        };
        best.map(|(displaced, cost, uuid, place)| (displaced, cost, uuid.clone(), place))
    }

    /// The usable GPUs that have the profile, with its index there.
    fn gpus_with(&self, profile: &ProfileName) -> impl Iterator<Item = (&GpuUuid, &GpuBook, usize)> {
        let usable = self.gpus.iter().filter(|(_, book)| book.usable);
        usable.filter_map(|(uuid, book)| Some((uuid, book, book.kind.table.profile(profile)?)))
    }

    /// How many slices of the profile a GPU has that stand in the way of another there, if they are to be spread.
    fn crowd(&self, book: &GpuBook, profile: &ProfileName) -> usize {
        let like = |slot: &&Slot| slot.counts() && slot.slice.profile == *profile;
        if self.spread { book.slots.iter().filter(like).count() } else { 0 }
    }

    /// The best place in free room.
    fn best_free_place(&self, profile: &ProfileName) -> Option<(Displaced, Cost, &GpuUuid, table::Place)> {
        let places = self.gpus_with(profile).filter_map(|(uuid, book, index)| {
            let (cost, start) = book.kind.scores.best_start(book.state(|_| true), index)?;
            let place = table::Place { profile: index, start };
            Some((self.crowd(book, profile), (Displaced::default(), cost, uuid, place)))
        });
        // Of equal ones the first, by UUID.
        let best = places.min_by_key(|(crowd, (_, cost, uuid, _))| (*crowd, *cost, *uuid));
        best.map(|(_, place)| place)
    }

    /// The best place for which the fewest spare slices must go.
    fn best_taken_place(&self, profile: &ProfileName) -> Option<(Displaced, Cost, &GpuUuid, table::Place)> {
        // Where nothing yields, there is no more room than there was without displacing.
        let yielding = self.gpus_with(profile).filter(|(_, book, _)| book.slots.iter().any(Slot::yields));
        let places = yielding.flat_map(|(uuid, book, index)| {
            let model = book.kind.table.model();
            let entry = &model.profiles[index];
            let crowd = self.crowd(book, profile);
            let starts = entry.starts.iter().map(move |&start| table::Place { profile: index, start });
            starts.filter_map(move |place| {
                let slice = Slice { start: place.start, size: entry.size, profile: entry.name.clone() };
                let goes = |slot: &Slot| slot.yields() && model.check(&slice, [&slot.slice]).is_err();
                let slices = self.displaceable(book.slots.iter().filter(|slot| goes(slot)))?;
                let missed = book.missed(|slot| goes(slot));
                let displaced = Displaced { slices, missed };
                let rest = book.state(|slot| !goes(slot));
                let cost = book.kind.scores.cost_of(&book.kind.table, rest, place)?;
                Some((crowd, (displaced, cost, uuid, place)))
            })
        });
        let rank =
            |(crowd, (displaced, cost, uuid, _)): &(usize, (Displaced, Cost, &GpuUuid, table::Place))| {
                (*displaced, *crowd, *cost, (*uuid).clone())
            };
        places.min_by_key(rank).map(|(_, place)| place)
    }

    /// How many declared slices are among `slots`, if their profiles can all spare them.
    fn displaceable<'a>(&self, slots: impl Iterator<Item = &'a Slot>) -> Option<u32> {
        let mut asked: BTreeMap<&ProfileName, (u32, u32)> = BTreeMap::new();
        for slot in slots.filter(|slot| slot.origin == Origin::Declared) {
            let (all, whole) = asked.entry(&slot.slice.profile).or_default();
            *all += 1;
            *whole += u32::from(slot.whole());
        }
        let spared = |(profile, (all, whole)): (&&ProfileName, &(u32, u32))| {
            self.spare(profile) >= *all && (*whole == 0 || self.spare_whole(profile) >= *whole)
        };
        asked.iter().all(spared).then(|| asked.values().map(|(all, _)| all).sum())
    }
}

#[cfg(test)]
mod tests;
