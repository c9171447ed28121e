//! The controller: observe, decide, act, wait.
//!
//! One task owns the [`index::Index`] and decides; watches and finished writes reach it as messages. What it decides is
//! carried out by tasks of their own, at most one per object at a time. There is nothing to lose at a crash: what was decided
//! is in the MIGNodes and Workloads, or is decided again.
//!
//! Of several replicas one decides, the leader; the others keep their index up to date and wait. What a leader that was
//! stopped, or cut off, can still do when the next one has taken over is in [`takeover`].

pub mod chargeback;
pub mod checks;
pub mod gate;
pub mod index;
mod metrics;
pub mod quotas;
pub mod reports;
mod takeover;
mod watches;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::{Api, Client};
use slicegate_core::id::{Attempt, NodeName, PodUid, WorkloadKey, WorkloadUid};
use slicegate_core::node::NodeSpec;
use slicegate_core::plan::{Action, Limits, Notice, plan};
use slicegate_core::profile::ProfileName;
use slicegate_core::quota::Standing;
use slicegate_core::workload::CheckState;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::api::convert::{now, time};
use crate::api::{MIGNode, SlicePolicy, SliceQuotaReport, kueue};
use crate::runtime::lease::{self, Hold, Lease, Role};
use crate::runtime::{Clients, Ready};
use index::{Index, Update};
pub use metrics::Metrics;
use reports::Reports;
use takeover::{Exposed, Takeover};
use writer::{CheckEntry, Outcome, Writer};

/// Writes under way at the same time, over all objects.
const CONCURRENT_WRITES: usize = 64;
/// How long the API server may still be at work on a call that nobody waits for any more (`--request-timeout`, its default).
const STRAY: Duration = Duration::from_mins(1);
/// What MIGNodes are marked with, for agents to compare with their own.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Messages taken in before the next decision, so that a flood of events does not keep decisions from being made.
const BATCH: usize = 4096;

/// After a decision as much time is left to gather events as it took, but no more than this: events do not wait long, and
/// decisions take no more than half of a processor.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// Arguments of `slicegate controller`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Seconds that an agent may take to take up a new MIGNode spec before its node gets no more workloads.
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    pub agent_silence: u64,
    /// Leader election.
    #[command(flatten)]
    pub election: lease::Args,
    /// The gate's webhook.
    #[command(flatten)]
    pub gate: gate::Args,
}

/// Why the controller cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kind is not served.
    #[error("the API server does not serve {kind}: {advice}")]
    NotServed {
        /// The kind.
        kind: String,
        /// What to do.
        advice: &'static str,
    },
    /// The controller's identity may not read a kind.
    #[error(
        "not allowed to list {kind}; apply config/rbac and run as ServiceAccount slicegate-controller: {source}"
    )]
    Forbidden {
        /// The kind.
        kind: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// A task ended that never should.
    #[error("the watch of {0} ended")]
    Ended(&'static str),
    /// This replica does not lead any more, or cannot stand for election.
    #[error(transparent)]
    Lease(#[from] lease::Error),
}

/// What reaches the deciding task.
enum Message {
    Seen(Update),
    Done(Done),
    /// A write was not carried out, since the lease has expired.
    Lapsed,
}

/// A finished write: what it was about, and the object as it is now.
struct Done {
    about: About,
    outcome: Outcome,
    update: Option<Update>,
}

enum About {
    Spec(NodeName),
    Check { workload: WorkloadKey, transition: Option<Transition> },
    Pod(PodUid),
    Confirm { question: Question, answer: Option<(u64, Vec<Pod>)> },
    Active(String),
    Event(Notice),
    Mark(NodeName),
    Deletion(PodUid),
    Touch(Exposed),
}

/// Whose pods are read again, and for the sake of which reservations.
struct Question {
    workload: WorkloadKey,
    labels: BTreeSet<WorkloadUid>,
    attempts: BTreeSet<Attempt>,
}

struct Transition {
    from: CheckState,
    to: CheckState,
}

/// Runs the controller until `shutdown`.
pub async fn run(
    args: Args,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: Ready,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    check_served(&clients.calls).await?;
    let mut lease = Lease::stand(&args.election, clients.watches.clone(), clients.calls.clone())?;
    let (updates, seen) = mpsc::channel::<Update>(1024);
    let (materials, taken) = mpsc::channel(1);
    let reporting = reports::run(clients.clone(), metrics.clone(), lease.hold(), taken);
    let watches = tokio::spawn(follow_all(clients.watches, args.gate.gate_webhook, updates));
    let limits = Limits { agent_silence: Duration::from_secs(args.agent_silence), ..Limits::default() };
    let (messages, inbox) = mpsc::unbounded_channel();
    let controller = Controller {
        index: Index::default(),
        writer: Writer::new(clients.calls),
        limits,
        metrics,
        messages,
        slots: Arc::new(Semaphore::new(CONCURRENT_WRITES)),
        confirming: BTreeSet::new(),
        activating: BTreeSet::new(),
        telling: BTreeSet::new(),
        marking: BTreeSet::new(),
        deleting: BTreeSet::new(),
        taken: BTreeMap::new(),
        idle_units: BTreeMap::new(),
        quotas: BTreeMap::new(),
        serving: BTreeMap::new(),
        opened: BTreeMap::new(),
        in_flight: 0,
        hold: lease.hold(),
        takeover: Takeover::default(),
        unanswered: None,
        reports: Reports::new(materials),
    };
    let roles = lease.roles();
    let at_rest = tokio::select! {
        ended = watches => return Err(Error::Ended(ended.unwrap_or("everything"))),
        _ = tokio::spawn(reporting) => return Err(Error::Ended("SliceQuotaReports")),
        // As Kubernetes' own controllers do: ending is the surest way to stop, and to start again with nothing half known.
        lost = lease.lost() => return Err(lost.into()),
        at_rest = controller.decide(inbox, seen, roles, ready, shutdown) => at_rest,
    };
    if at_rest {
        lease.release().await;
    } else {
        warn!(
            "writes may still be under way, so the lease is not released; another replica takes over when it has expired"
        );
    }
    Ok(())
}

/// Says at once what would otherwise be an endless row of warnings.
async fn check_served(client: &Client) -> Result<(), Error> {
    const OURS: &str = "apply crds/ (kubectl apply --server-side -k crds)";
    const KUEUE: &str = "install Kueue v0.16 or later, whose API version is v1beta2";
    let probe = kube::api::ListParams::default().limit(1);
    served::<MIGNode>(client, &probe, OURS).await?;
    served::<SlicePolicy>(client, &probe, OURS).await?;
    served::<SliceQuotaReport>(client, &probe, OURS).await?;
    served::<kueue::Workload>(client, &probe, KUEUE).await?;
    served::<kueue::AdmissionCheck>(client, &probe, KUEUE).await?;
    served::<kueue::ResourceFlavor>(client, &probe, KUEUE).await?;
    served::<kueue::ClusterQueue>(client, &probe, KUEUE).await?;
    served::<kueue::LocalQueue>(client, &probe, KUEUE).await?;
    served::<kueue::Cohort>(client, &probe, KUEUE).await
}

async fn served<K>(client: &Client, probe: &kube::api::ListParams, advice: &'static str) -> Result<(), Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let kind = format!("{} {}", K::api_version(&()), K::kind(&()));
    match Api::<kube::core::PartialObjectMeta<K>>::all(client.clone()).list_metadata(probe).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Error::NotServed { kind, advice }),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Err(Error::Forbidden { kind, source: Box::new(kube::Error::Api(status)) })
        }
        // Anything else may pass; the watches try again.
        _ => Ok(()),
    }
}

async fn follow_all(client: Client, gate_webhook: bool, updates: mpsc::Sender<Update>) -> &'static str {
    use watches::follow;
    let (c, u) = (|| client.clone(), || updates.clone());
    tokio::select! {
        () = follow::<Node, _>(c(), Update::Node, u()) => "Nodes",
        () = follow::<MIGNode, _>(c(), Update::MigNode, u()) => "MIGNodes",
        () = follow::<Pod, _>(c(), Update::Pod, u()) => "Pods",
        () = follow::<kueue::Workload, _>(c(), Update::Workload, u()) => "Workloads",
        () = follow::<kueue::AdmissionCheck, _>(c(), Update::Check, u()) => "AdmissionChecks",
        () = follow::<SlicePolicy, _>(c(), Update::Policy, u()) => "SlicePolicies",
        () = follow::<kueue::ResourceFlavor, _>(c(), Update::Flavor, u()) => "ResourceFlavors",
        () = gate::presence::follow(c(), gate_webhook, u()) => "the gate",
        () = follow::<kueue::ClusterQueue, _>(c(), Update::Queue, u()) => "ClusterQueues",
        () = follow::<kueue::LocalQueue, _>(c(), Update::LocalQueue, u()) => "LocalQueues",
        () = follow::<kueue::Cohort, _>(c(), Update::Cohort, u()) => "Cohorts",
        () = follow::<ResourceQuota, _>(c(), Update::Quota, u()) => "ResourceQuotas",
        () = follow::<LimitRange, _>(c(), Update::LimitRange, u()) => "LimitRanges",
        () = follow::<Namespace, _>(c(), Update::Namespace, u()) => "Namespaces",
        () = follow::<PriorityClass, _>(c(), Update::PriorityClass, u()) => "PriorityClasses",
    }
}

struct Controller {
    index: Index,
    writer: Writer,
    limits: Limits,
    metrics: Arc<Metrics>,
    messages: mpsc::UnboundedSender<Message>,
    slots: Arc<Semaphore>,
    confirming: BTreeSet<WorkloadUid>,
    activating: BTreeSet<String>,
    telling: BTreeSet<Notice>,
    marking: BTreeSet<NodeName>,
    deleting: BTreeSet<PodUid>,
    /// The gauge of taken slices as it was set last.
    taken: BTreeMap<ProfileName, u32>,
    /// The gauge of idle units as it was set last.
    idle_units: BTreeMap<ProfileName, u32>,
    /// The gauges of ResourceQuotas as they were set last.
    quotas: BTreeMap<Arc<str>, Vec<Standing>>,
    /// By node whose `spec` is being written: how many slices are claimed anew that are there, and how many that are to be made.
    serving: BTreeMap<NodeName, (u32, u32)>,
    /// When each open reservation was first seen, for the histogram of reserve-to-ready.
    opened: BTreeMap<WorkloadUid, (Attempt, Instant)>,
    in_flight: usize,
    hold: Hold,
    takeover: Takeover,
    /// When the last write came to nobody knows what.
    unanswered: Option<Instant>,
    reports: Reports,
}

impl Controller {
    /// Decides until `shutdown`; true if nothing is under way any more then.
    async fn decide(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut seen: mpsc::Receiver<Update>,
        mut roles: watch::Receiver<Role>,
        ready: Ready,
        shutdown: impl Future<Output = ()>,
    ) -> bool {
        let mut shutdown = pin!(shutdown);
        let mut recheck: Option<Duration> = None;
        let mut rested = Instant::now();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Ok(()) = roles.changed() => {}
                message = inbox.recv() => match message {
                    Some(message) => self.take_in(message),
                    None => break,
                },
                update = seen.recv() => match update {
                    Some(update) => self.take_in(Message::Seen(update)),
                    None => break,
                },
                () = async { sleep(recheck.unwrap_or_default()).await }, if recheck.is_some() => {}
            }
            // A decision goes over the whole world, so in a flood of events each is to be about many of them.
            sleep_until(rested.into()).await;
            for _ in 0..BATCH {
                if let Ok(message) = inbox.try_recv() {
                    self.take_in(message);
                } else if let Ok(update) = seen.try_recv() {
                    self.take_in(Message::Seen(update));
                } else {
                    break;
                }
            }
            let role = roles.borrow_and_update().clone();
            let leads = matches!(role, Role::Leader { .. });
            self.metrics.leader(leads);
            ready.set_role(if leads { "leader" } else { "standby" });
            if self.index.synced() {
                if !ready.is_ready() {
                    info!("caches are complete");
                    ready.set();
                }
                let begun = Instant::now();
                recheck = self.proceed(&role);
                rested = Instant::now() + begun.elapsed().min(LONGEST_REST);
            } else {
                ready.waiting_for(self.index.waiting_for());
            }
        }
        self.finish(inbox).await
    }

    /// Decides, if it is this replica's to decide. The lease is looked at when all events have been taken in: a decision
    /// never rests on what a later leader has written.
    fn proceed(&mut self, role: &Role) -> Option<Duration> {
        let Role::Leader { term, clean } = role else { return None };
        if !self.hold.is_ours() || !self.take_over(term, *clean) {
            return None;
        }
        let recheck = self.step(term);
        recheck.into_iter().chain(self.reports.proceed(&self.index)).min()
    }

    /// Lets the writes that are under way end, so that nothing is half known at the next start. True if they all have.
    async fn finish(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) -> bool {
        let all = async {
            while self.in_flight > 0 {
                match inbox.recv().await {
                    Some(message) => self.take_in(message),
                    None => break,
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(5), all).await.is_ok();
        ended && self.unanswered.is_none_or(|then| then.elapsed() > STRAY)
    }

    fn take_in(&mut self, message: Message) {
        match message {
            Message::Seen(update) => {
                self.reports.note(&update);
                self.index.apply(now(), update);
            }
            Message::Done(done) => self.take_in_done(done),
            Message::Lapsed => self.in_flight -= 1,
        }
    }

    fn take_in_done(&mut self, done: Done) {
        self.in_flight -= 1;
        if done.outcome == Outcome::Unanswered {
            self.unanswered = Some(Instant::now());
        }
        if let Some(update) = done.update {
            self.index.apply_answer(now(), update);
        }
        match done.about {
            About::Spec(name) => {
                self.metrics.write("spec", done.outcome);
                let served = self.serving.remove(&name);
                if let Some(served) = served.filter(|_| done.outcome == Outcome::Written) {
                    self.metrics.claimed(served);
                }
                self.index.end_spec(&name);
            }
            About::Check { workload, transition } => {
                self.metrics.write("check", done.outcome);
                self.index.set_workload_busy(&workload.uid, false);
                if let Some(Transition { from, to }) = transition.filter(|_| done.outcome == Outcome::Written)
                {
                    self.metrics.transition(from, to);
                    info!(%workload, from = writer::state_name(from), to = writer::state_name(to), "admission check");
                    if to == CheckState::Ready
                        && let Some((_, opened)) = self.opened.remove(&workload.uid)
                    {
                        self.metrics.reserve_to_ready(opened.elapsed());
                    }
                }
            }
            About::Pod(uid) => {
                self.metrics.write("pod", done.outcome);
                self.index.end_steer(&uid);
            }
            About::Confirm { question: Question { workload, labels, attempts }, answer } => {
                self.metrics.write("confirm", done.outcome);
                self.confirming.remove(&workload.uid);
                if let Some((version, pods)) = answer {
                    self.index.confirm(&workload, &labels, attempts, version, &pods);
                }
            }
            About::Active(name) => {
                self.metrics.write("active", done.outcome);
                self.activating.remove(&name);
            }
            About::Event(notice) => {
                self.metrics.write("event", done.outcome);
                self.telling.remove(&notice);
                if done.outcome == Outcome::Written {
                    self.index.set_told(notice);
                }
            }
            About::Mark(name) => {
                self.metrics.write("mark", done.outcome);
                self.marking.remove(&name);
            }
            About::Deletion(uid) => {
                self.metrics.write("deletion", done.outcome);
                self.deleting.remove(&uid);
            }
            About::Touch(object) => {
                self.metrics.write("takeover", done.outcome);
                self.takeover.end(object, done.outcome);
            }
        }
    }

    /// Decides, and sets everything going that was decided. Returns how long to wait if nothing happens.
    fn step(&mut self, term: &str) -> Option<Duration> {
        self.metrics.chargeback.follow(&self.hold, &mut self.index);
        self.index.prune();
        self.note_opened();
        let now = now();
        let timer = self.metrics.plan_seconds.start_timer();
        let plan = plan(now, self.index.snapshot(), &self.limits);
        timer.observe_duration();
        self.index.retain_told(&plan.notices);
        self.index.note_waiting(now, plan.waiting);
        if self.taken != plan.taken {
            self.metrics.taken(&plan.taken, &self.taken);
            self.taken = plan.taken;
        }
        self.metrics.blocked(&plan.blocked);
        if self.idle_units != plan.idle_units {
            self.metrics.idle_units(&plan.idle_units, &self.idle_units);
            self.idle_units = plan.idle_units;
        }
        self.metrics.held_units(plan.held_units);
        if self.quotas != plan.quotas {
            self.metrics.quotas(&plan.quotas, &self.quotas);
            self.quotas = plan.quotas;
        }
        for action in plan.actions {
            self.begin(action);
        }
        for verdict in self.index.stale_conditions() {
            self.begin_active(verdict);
        }
        for (node, expect) in self.index.without_mark(VERSION) {
            self.begin_mark(node, expect, term.to_owned());
        }
        plan.recheck_at.map(|at| (at - now).max(Duration::from_millis(1)))
    }

    fn note_opened(&mut self) {
        let workloads = &self.index.snapshot().workloads;
        self.opened.retain(|uid, _| workloads.get(uid).is_some_and(|w| w.open().is_some()));
        for (uid, workload) in workloads {
            let Some(reservation) = workload.open() else { continue };
            let waiting = workload.checks.iter().any(|c| c.state == CheckState::Pending);
            let known = self.opened.get(uid).is_some_and(|(attempt, _)| *attempt == reservation.attempt);
            if waiting && !known {
                self.opened.insert(uid.clone(), (reservation.attempt.clone(), Instant::now()));
            }
        }
    }

    fn begin(&mut self, action: Action) {
        let writer = self.writer.clone();
        match action {
            Action::WriteSpec { node, expect, spec } => {
                debug!(%node, claims = spec.claims.len(), "writing spec");
                let known = self.index.snapshot().nodes.get(&node).and_then(|node| node.mig.as_ref());
                let served = known.map(|mig| spec.served_since(&mig.confirmed));
                self.serving.extend(served.map(|served| (node.clone(), served)));
                let term = self.index.term_of(&node);
                self.index.begin_spec(&node, spec.clone());
                self.spawn(async move {
                    let (outcome, update) = writer.write_spec(&node, &expect, &term, &spec).await;
                    Done { about: About::Spec(node), outcome, update }
                });
            }
            Action::DeleteNode { node, expect } => {
                info!(%node, "the Node is gone and nothing is claimed on it; removing its MIGNode");
                let Some(version) = self.index.mig_version(&node) else { return };
                self.index.begin_spec(&node, NodeSpec::default());
                self.spawn(async move {
                    let (outcome, update) = writer.delete_node(&node, &expect, &version).await;
                    Done { about: About::Spec(node), outcome, update }
                });
            }
            Action::SetCheck { workload, expect, check, from, state, message, label } => {
                // The time of the state, not of the message: it stays while the state does.
                let since = self
                    .index
                    .workload(&workload.uid)
                    .filter(|_| from == state)
                    .and_then(|w| w.status.as_ref()?.admission_checks.iter().find(|c| c.name == check))
                    .map_or_else(|| time(now()), |entry| entry.last_transition_time.clone());
                let entry = CheckEntry::new(check, state, message, since, &label);
                let transition = (from != state).then_some(Transition { from, to: state });
                self.index.set_workload_busy(&workload.uid, true);
                self.spawn(async move {
                    let (outcome, update) = writer.set_check(&workload, &expect, entry).await;
                    Done { about: About::Check { workload, transition }, outcome, update }
                });
            }
            Action::Confirm { workload, labels, attempts } => {
                if !self.confirming.insert(workload.uid.clone()) {
                    return;
                }
                self.spawn(async move {
                    let answer = writer.pods_of(&workload, &labels).await;
                    let outcome = if answer.is_some() { Outcome::Written } else { Outcome::Failed };
                    let question = Question { workload, labels, attempts };
                    Done { about: About::Confirm { question, answer }, outcome, update: None }
                });
            }
            Action::Steer { pod, expect, hostname } => {
                self.index.begin_steer(&pod.uid, hostname.clone());
                self.spawn(async move {
                    let (outcome, update) = writer.steer(&pod, &expect, &hostname).await;
                    Done { about: About::Pod(pod.uid), outcome, update }
                });
            }
            Action::Tell { notice, note } => {
                if !self.telling.insert(notice.clone()) {
                    return;
                }
                self.spawn(async move {
                    let outcome = writer.tell(&notice, &note).await;
                    Done { about: About::Event(notice), outcome, update: None }
                });
            }
            Action::Evict { pod } => {
                if !self.deleting.insert(pod.uid.clone()) {
                    return;
                }
                info!(namespace = %pod.namespace, pod = %pod.name, "evicting the pod so that another workload finds room");
                self.spawn(async move {
                    let (outcome, update) = writer.evict(&pod).await;
                    Done { about: About::Deletion(pod.uid), outcome, update }
                });
            }
            Action::DeletePod { pod } => {
                let Some(expect) = self.index.snapshot().pods.get(&pod.uid).map(|p| p.version.clone()) else {
                    return;
                };
                if !self.deleting.insert(pod.uid.clone()) {
                    return;
                }
                info!(namespace = %pod.namespace, pod = %pod.name, "its slice was made anew; deleting the pod");
                self.spawn(async move {
                    let (outcome, update) = writer.delete_pod(&pod, &expect).await;
                    Done { about: About::Deletion(pod.uid), outcome, update }
                });
            }
        }
    }

    fn begin_active(&mut self, verdict: checks::Verdict) {
        if !self.activating.insert(verdict.check.clone()) {
            return;
        }
        info!(check = verdict.check, active = verdict.active, message = verdict.message, "AdmissionCheck");
        let writer = self.writer.clone();
        self.spawn(async move {
            let (outcome, update) = writer.set_active(&verdict, time(now())).await;
            Done { about: About::Active(verdict.check), outcome, update }
        });
    }

    fn begin_mark(&mut self, node: NodeName, expect: String, term: String) {
        if !self.marking.insert(node.clone()) {
            return;
        }
        let writer = self.writer.clone();
        self.spawn(async move {
            let (outcome, update) = writer.mark(&node, &expect, VERSION, &term).await;
            Done { about: About::Mark(node), outcome, update }
        });
    }

    fn spawn(&mut self, write: impl Future<Output = Done> + Send + 'static) {
        self.in_flight += 1;
        let (messages, slots, hold) = (self.messages.clone(), self.slots.clone(), self.hold.clone());
        tokio::spawn(async move {
            let _slot = slots.acquire_owned().await;
            let message = if hold.is_ours() { Message::Done(write.await) } else { Message::Lapsed };
            // The deciding task is gone only when the process is about to be.
            let _ = messages.send(message);
        });
    }
}
