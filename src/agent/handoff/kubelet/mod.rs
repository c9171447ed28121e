//! A kubelet hands slices to containers: the agent is a device plugin of it, and asks it who has what.
//!
//! Nothing is taken for granted that the kubelet has not acknowledged: a slice is shown once `GetAllocatableResources` counts
//! it, and gone once it no longer does and nobody was given it in the meantime.

pub mod book;
mod doubt;
mod holds;
mod plugin;
mod registrar;
mod resources;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slicegate_core::agent::Holder;
use slicegate_core::geometry::Place;
use slicegate_core::id::GpuUuid;
use slicegate_core::profile::ProfileName;
use slicegate_core::tokens::Token;
use slicegate_kubelet_api::socket::SocketError;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Open, Shown};
use crate::agent::cdi::{self, Strategy};
use crate::agent::nvml::Driver;
use crate::agent::state::Message;
use book::SharedBook;
use doubt::Doubts;
use holds::{Questions, Verdict};
use plugin::{Allocator, Lists};
use registrar::Registrar;
pub use registrar::Registration;
use resources::Resources;
pub use resources::{ResourcesError, Seen, WHOLE_GPU};
use trouble::Trouble;

/// Pauses between looks while something is awaited, and the rest between looks while pods have slices.
const PAUSES: [u64; 9] = [0, 2, 5, 10, 20, 50, 100, 250, 500];
const REST: Duration = Duration::from_secs(1);
/// A look is two requests of the hundred a second that the kubelet answers, whoever asks, of which it answers ten in one go:
/// the agent takes no more than four fifths of them.
const PACE: Duration = Duration::from_millis(25);
const AT_ONCE: u32 = 4;
/// Pause before the kubelet is made to write once more a checkpoint that cannot be read: it does so whenever it is told a list.
const MEND: Duration = Duration::from_secs(10);

/// Where the kubelet is.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Its device plugin folder.
    pub device_plugins: PathBuf,
    /// Its PodResources socket.
    pub pod_resources: PathBuf,
}

/// The kubelet's side of the handoff.
pub struct Kubelet {
    book: SharedBook,
    strategy: Strategy,
    lists: Lists,
    more: Arc<Notify>,
    again: mpsc::UnboundedSender<ProfileName>,
    doubts: Doubts,
    resources: Resources,
    messages: mpsc::Sender<Message>,
    registrar: Option<Registrar>,
    registered: bool,
    seen: Option<Seen>,
    questions: Questions,
    /// Whether it is known who has what: by the journal, or without one by the kubelet.
    knows_holders: bool,
    /// A pod by profile that has a slice of it, of which nobody knows which it is.
    unexplained: BTreeMap<ProfileName, String>,
    /// When the kubelet was last made to write a checkpoint anew that could not be read.
    mended: Option<Instant>,
    look: Option<JoinHandle<()>>,
    /// How many looks since something happened that makes a look worthwhile, and when the last one ended.
    looks: usize,
    last_look: Option<Instant>,
    /// When all looks so far would have been begun at an even pace.
    paced: Option<Instant>,
    /// Whether the kubelet has been asked to write its checkpoint and has not yet.
    asking: bool,
    /// What is wrong with the registration.
    unregistered: Trouble,
    /// What is wrong with what the kubelet says of itself.
    unanswered: Trouble,
}

impl Kubelet {
    /// Prepares everything; nothing is offered before [`Self::begin`].
    pub fn new(
        folders: Folders,
        strategy: Strategy,
        book: SharedBook,
        driver: Arc<Driver>,
        messages: mpsc::Sender<Message>,
    ) -> Result<Self, SocketError> {
        let (lists, more) = (Lists::default(), Arc::new(Notify::new()));
        let (again, doubted) = mpsc::unbounded_channel();
        let allocator =
            Arc::new(Allocator { book: book.clone(), driver, strategy, messages: messages.clone() });
        let registrar = Registrar {
            folder: folders.device_plugins.clone(),
            lists: lists.clone(),
            allocator,
            more: more.clone(),
            doubted,
            messages: messages.clone(),
        };
        let knows_holders = !book.lock().journal.is_new;
        Ok(Self {
            book,
            strategy,
            lists,
            more,
            again,
            doubts: Doubts::default(),
            resources: Resources::new(folders.pod_resources, folders.device_plugins)?,
            messages,
            registrar: Some(registrar),
            registered: false,
            seen: None,
            questions: Questions::default(),
            knows_holders,
            unexplained: BTreeMap::new(),
            mended: None,
            look: None,
            looks: 0,
            last_look: None,
            paced: None,
            asking: false,
            unregistered: Trouble::default(),
            unanswered: Trouble::default(),
        })
    }

    /// Registers with the kubelet, if that has not been done: from now on it admits pods. Not before it is known who has
    /// what, or one pod could be given what another has.
    pub fn begin(&mut self) {
        if let Some(registrar) = self.registrar.take_if(|_| self.knows_holders) {
            info!("registering with the kubelet");
            tokio::spawn(registrar.run());
        }
    }

    /// Something happened after which the kubelet's word is of interest.
    pub fn wake(&mut self) {
        self.looks = 0;
    }

    /// Takes in how a registration went.
    pub fn take_in_registration(&mut self, registration: Registration) {
        self.registered = registration == Registration::Registered;
        self.unregistered.set(match registration {
            Registration::Failed(trouble) => Some(trouble),
            Registration::Registered | Registration::Lost => None,
        });
        // What was acknowledged before is void.
        self.seen = None;
        self.wake();
    }

    /// Takes in a look: who has what. Tells which slices the kubelet says are given back, for NVML to be asked about them.
    pub fn take_in_look(&mut self, look: Result<Seen, ResourcesError>, by_uuid: &BTreeMap<String, Place>) {
        // Its task may not have ended yet; a look that is put off for that is begun by nothing until something else happens.
        self.look = None;
        self.last_look = Some(Instant::now());
        let seen = match look {
            Ok(seen) => seen,
            Err(error) => {
                if self.unanswered.set(Some(error.to_string())) {
                    warn!(%error, "the kubelet's word cannot be had; trying again");
                }
                return;
            }
        };
        if self.unanswered.set(seen.checkpoint_error.clone()) {
            warn!(error = seen.checkpoint_error, "who has what cannot be known for sure");
        }
        let mut ask = BTreeSet::new();
        if seen.checkpoint_error.is_some() && self.mended.is_none_or(|at| at.elapsed() > MEND) {
            self.mended = Some(Instant::now());
            ask.extend(self.lists.profiles());
        }
        {
            let mut book = self.book.lock();
            let known: BTreeSet<Token> = book.tokens.bound().keys().cloned().collect();
            self.questions.retain(|token| known.contains(token));
            book.amend(|token, note| match self.questions.judge(token, note, &seen) {
                Verdict::Has(pod) => {
                    (note.confirmed, note.over) = (true, None);
                    note.pod = pod.or_else(|| note.pod.take());
                }
                Verdict::Open => {}
                Verdict::Ask => {
                    // It is in the checkpoint.
                    note.confirmed = true;
                    self.questions.ask(token, &seen);
                    ask.insert(token.profile.clone());
                }
                Verdict::Over => note.over = note.over.or(Some(Instant::now())),
            });
            let mut unexplained = BTreeMap::new();
            let held = seen.pods.keys().chain(seen.checkpoint.keys());
            for token in held.filter(|token| !known.contains(token)) {
                let found = explain(token, &seen, by_uuid);
                let restored = found.is_some_and(|(place, uuid)| book.restore(token, place, uuid));
                // The checkpoint alone may speak of a pod that is over; then it is soon let go of.
                if let Some(pod) = seen.pods.get(token).filter(|_| !restored) {
                    unexplained.insert(token.clone(), pod.clone());
                }
            }
            book.tokens.set_unexplained(unexplained.keys().cloned().collect());
            if !self.knows_holders && seen.checkpoint_error.is_none() {
                let noted = book.write(true).and_then(|()| book.journal.complete());
                if let Err(error) = &noted {
                    warn!(%error, "journal");
                }
                self.knows_holders = noted.is_ok();
            }
            self.unexplained = unexplained.into_iter().map(|(token, pod)| (token.profile, pod)).collect();
        }
        if !ask.is_empty() {
            self.tell(&ask, true);
            self.wake();
        }
        if self.registered {
            let told = self.book.lock().tokens.healthy();
            for profile in self.doubts.judge(Instant::now(), &told, &seen.healthy, &seen.strange) {
                warn!(%profile, "the kubelet does not take this profile's devices from us; registering again");
                // Nobody listens any more only when the agent ends.
                let _ = self.again.send(profile);
            }
        }
        self.asking = self.questions.wait(&seen);
        self.seen = Some(seen);
    }

    /// What holds a slice.
    pub fn holder(&self, place: &Place) -> Option<Holder> {
        let book = self.book.lock();
        let note = book.tokens.token(place).and_then(|token| book.note(token))?;
        Some(note.pod.clone().map_or(Holder::Unnamed, Holder::Pod))
    }

    /// Why a slice cannot be offered: a pod may have it of which nobody knows which slice it has.
    pub fn obstacle(&self, place: &Place) -> Option<String> {
        let pod = self.unexplained.get(&place.slice.profile)?;
        let free = self.book.lock().tokens.token(place).is_none();
        free.then(|| {
            format!(
                "pod {pod} has a slice of {} and it is not known which one, since the node journal was lost; those that may be \
                 it are offered again once the pod is over",
                place.slice.profile
            )
        })
    }

    /// Whether the pod that has a slice was told a name of it that is no longer valid.
    pub fn is_misnamed(&self, place: &Place, uuid: &str) -> bool {
        let book = self.book.lock();
        let note = book.tokens.token(place).and_then(|token| book.note(token));
        self.strategy == Strategy::Envvar && note.is_some_and(|note| note.uuid != uuid)
    }

    /// GPUs of slices that the kubelet says are given back.
    pub fn given_back(&self) -> BTreeSet<GpuUuid> {
        let book = self.book.lock();
        let over = book.bindings().filter(|(_, _, note)| note.over.is_some());
        over.map(|(_, place, _)| place.gpu.clone()).collect()
    }

    /// After a look of NVML at a GPU, begun at `begun`: what was given back before is free, or held by what lives on in it.
    pub fn release(&mut self, gpu: &GpuUuid, begun: Instant) {
        let mut book = self.book.lock();
        let over: Vec<Token> = book
            .bindings()
            .filter(|(_, place, note)| place.gpu == *gpu && note.over.is_some_and(|over| over <= begun))
            .map(|(token, ..)| token.clone())
            .collect();
        if over.is_empty() {
            return;
        }
        book.release(&over);
        // A binding too many in the journal is let go of again.
        if let Err(error) = book.write(false) {
            warn!(%error, "journal");
        }
    }

    /// Offers slices. Returns how far the kubelet has taken it up.
    pub fn offer(&mut self, open: Open, capacity: &BTreeMap<ProfileName, u32>) -> Shown {
        {
            let mut book = self.book.lock();
            book.tokens.set_counts(capacity);
            book.open(open.0);
        }
        let profiles: Vec<ProfileName> = self.book.lock().tokens.counts().keys().cloned().collect();
        let before = self.lists.profiles().len();
        if self.tell(&profiles, false) {
            // However long nothing was awaited: the kubelet takes it up at once.
            self.wake();
        }
        if self.lists.profiles().len() != before {
            self.more.notify_one();
        }
        let book = self.book.lock();
        let healthy = book.tokens.healthy();
        let nothing = BTreeSet::new();
        let acknowledged = |profile: &ProfileName| {
            let seen = self.seen.as_ref()?;
            Some(seen.healthy.get(profile).unwrap_or(&nothing))
        };
        let settled =
            |profile: &&ProfileName| self.registered && acknowledged(profile) == healthy.get(profile);
        let allocatable = |profile: &ProfileName| {
            let count = acknowledged(profile).map_or(0, BTreeSet::len).min(healthy[profile].len());
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        Shown {
            known: self.registered && self.seen.is_some(),
            capacity: book.tokens.counts().clone(),
            allocatable: profiles.iter().map(|p| (p.clone(), allocatable(p))).collect(),
            settled: profiles.iter().filter(settled).cloned().collect(),
        }
    }

    /// Whether nobody was given a slice up to now; nobody will be who was not, since it is not open.
    pub fn is_free(&self, place: &Place) -> bool {
        self.book.lock().tokens.token(place).is_none()
    }

    /// Begins a look if one is due; says when the next one is.
    pub fn look(&mut self, settled: bool) -> Option<Duration> {
        let has_bindings = !self.book.lock().tokens.bound().is_empty();
        let unconfirmed = self.book.lock().bindings().any(|(_, _, note)| !note.confirmed);
        let awaited = !settled || unconfirmed || self.asking || self.seen.is_none();
        let pause = match PAUSES.get(self.looks) {
            Some(pause) if awaited || self.looks == 0 => Duration::from_millis(*pause),
            _ if awaited || has_bindings || self.unanswered.is_there() => REST,
            _ => return None,
        };
        if self.look.as_ref().is_some_and(|look| !look.is_finished()) {
            return None;
        }
        let now = Instant::now();
        let rested = self.last_look.map_or(Duration::ZERO, |last| pause.saturating_sub(now - last));
        let begun = self.paced.map_or(now, |before| before.max(now)) + PACE;
        let due = rested.max((begun - now).saturating_sub(PACE * AT_ONCE));
        if !due.is_zero() {
            return Some(due);
        }
        self.paced = Some(begun);
        self.looks = self.looks.saturating_add(1);
        let (resources, messages) = (self.resources.clone(), self.messages.clone());
        self.look = Some(tokio::spawn(async move {
            let look = resources.look().await;
            // Nobody listens any more only when the agent ends.
            let _ = messages.send(Message::Kubelet(Box::new(look))).await;
        }));
        None
    }

    /// What stands in the way, for people.
    pub fn trouble(&self) -> Option<&str> {
        self.unregistered.lasting().or_else(|| self.unanswered.lasting())
    }

    /// What the kubelet says.
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Tells the kubelet the lists of these profiles. `again`: also those that are nothing new. Whether one was new.
    fn tell<'a>(&self, profiles: impl IntoIterator<Item = &'a ProfileName>, again: bool) -> bool {
        let book = self.book.lock();
        let mut healthy = book.tokens.healthy();
        let mut is_new = false;
        for profile in profiles {
            let count = book.tokens.counts().get(profile).copied().unwrap_or(0);
            is_new |= self.lists.tell(profile, count, &healthy.remove(profile).unwrap_or_default(), again);
        }
        is_new
    }
}

/// The slice that a device of a running container stands for, by what the container was answered.
fn explain(token: &Token, seen: &Seen, by_uuid: &BTreeMap<String, Place>) -> Option<(Place, String)> {
    let recorded = seen.checkpoint.get(token)?;
    // The devices of one answer are as good as each other: they were given to one container.
    let same: Vec<&Token> = seen
        .checkpoint
        .iter()
        .filter(|(other, r)| other.profile == token.profile && *r == recorded)
        .map(|(other, _)| other)
        .collect();
    let at = same.iter().position(|other| *other == token)?;
    let response = &recorded.response;
    let annotated = response.annotations.values().flat_map(|names| names.split(','));
    let names = response.cdi_devices.iter().map(|device| device.name.as_str()).chain(annotated);
    let by_name = |name: &str| {
        let at = cdi::parse(name)?;
        let is = |place: &Place| {
            place.gpu == at.gpu && place.slice.profile == at.profile && place.slice.start == at.start
        };
        by_uuid.iter().find(|(_, place)| is(place)).map(|(uuid, place)| (place.clone(), uuid.clone()))
    };
    let uuids = response.envs.get("NVIDIA_VISIBLE_DEVICES").map(String::as_str).unwrap_or_default();
    let by_variable = |uuid: &str| Some((by_uuid.get(uuid)?.clone(), uuid.to_owned()));
    let mut slices = names.filter_map(by_name).chain(uuids.split(',').filter_map(by_variable));
    slices.nth(at)
}
