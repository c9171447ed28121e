//! The task that reads, watches and writes the Lease.

use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use slicegate_core::election::{Election, Loss, Observation, Record, Step, Times};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Args, Hold, Role};
use crate::runtime::clock::since_boot;

/// Reason of the Events, as client-go's.
const EVENT: &str = "LeaderElection";
/// What the Events say, and what was done.
const BECAME: (&str, &str) = ("became leader", "Acquire");
const STOPPED: (&str, &str) = ("stopped leading", "Release");
/// How long an Event may take: it matters less than what comes next.
const EVENT_LIMIT: Duration = Duration::from_secs(1);

/// Who stands for election.
pub struct Candidate {
    me: String,
    times: Times,
    name: String,
    namespace: String,
    api: Api<Lease>,
    watched: Api<Lease>,
    recorder: Recorder,
    election: Election,
    /// The Lease as it was seen last.
    object: Option<Lease>,
    roles: watch::Sender<Role>,
    hold: Hold,
}

impl Candidate {
    /// A candidate that knows nothing yet.
    pub fn new(
        args: &Args,
        me: String,
        times: Times,
        (watches, calls): (Client, Client),
        roles: watch::Sender<Role>,
        hold: Hold,
    ) -> Self {
        let namespace = args.resource_namespace.clone();
        let reporter = Reporter { controller: args.resource_name.clone(), instance: Some(me.clone()) };
        Self {
            times,
            name: args.resource_name.clone(),
            api: Api::namespaced(calls.clone(), &namespace),
            watched: Api::namespaced(watches, &namespace),
            recorder: Recorder::new(calls, reporter),
            election: Election::new(me.clone(), times),
            object: None,
            roles,
            hold,
            namespace,
            me,
        }
    }

    /// Takes part until the term is lost, or the lease is to be released.
    pub async fn run(mut self, mut release: oneshot::Receiver<()>) -> Result<(), Loss> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut changes = pin!(watcher(self.watched.clone(), config).default_backoff());
        let mut listed = false;
        info!(identity = self.me, lease = %format!("{}/{}", self.namespace, self.name), "standing for election");
        loop {
            match self.election.next(since_boot()) {
                Step::Wait(until) => {
                    tokio::select! {
                        _ = &mut release => {
                            self.release().await;
                            return Ok(());
                        }
                        change = changes.try_next() => match change {
                            Ok(Some(change)) => self.take_in(change, &mut listed),
                            Ok(None) => {}
                            Err(error) => debug!(%error, "watch of the lease interrupted; trying again"),
                        },
                        () = sleep(until.saturating_sub(since_boot())) => {}
                    }
                }
                Step::Read => self.read().await,
                Step::Write { expect, transitions, acquires } => {
                    self.write(expect, transitions, acquires).await;
                }
                Step::StepDown(loss) => {
                    self.hold.end();
                    self.tell(STOPPED).await;
                    return Err(loss);
                }
            }
        }
    }

    fn take_in(&mut self, change: watcher::Event<Lease>, listed: &mut bool) {
        match change {
            watcher::Event::Init => *listed = false,
            watcher::Event::InitApply(lease) => {
                *listed = true;
                self.observe(lease);
            }
            watcher::Event::Apply(lease) => self.observe(lease),
            watcher::Event::InitDone if *listed => {}
            watcher::Event::InitDone => self.election.observe_none(since_boot()),
            watcher::Event::Delete(lease) => {
                warn!("somebody has deleted the lease");
                let version = version(&lease);
                self.election.observe(since_boot(), Observation { version, record: None });
            }
        }
    }

    fn observe(&mut self, lease: Lease) {
        let observation = observation(&lease);
        if self.object.as_ref().is_none_or(|known| version(known) <= observation.version) {
            let holder = |lease: &Lease| holder(lease).to_owned();
            if self.object.as_ref().map(holder) != Some(holder(&lease)) {
                info!(holder = holder(&lease), "lease");
            }
            self.object = Some(lease);
        }
        self.election.observe(since_boot(), observation);
    }

    async fn read(&mut self) {
        match limited(self.limit(), self.api.get_opt(&self.name)).await {
            Ok(Some(lease)) => self.observe(lease),
            Ok(None) => self.election.observe_none(since_boot()),
            Err(error) => self.fail("read", &error),
        }
    }

    async fn write(&mut self, expect: Option<u64>, transitions: u32, acquires: bool) {
        let begun = since_boot();
        let now = MicroTime(jiff::Timestamp::now());
        let mut lease = self.object.clone().unwrap_or_default();
        let since = lease.spec.take().and_then(|spec| spec.acquire_time).filter(|_| !acquires);
        lease.spec = Some(LeaseSpec {
            acquire_time: Some(since.unwrap_or_else(|| now.clone())),
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(self.times.lease_duration.as_secs()).ok(),
            lease_transitions: i32::try_from(transitions).ok(),
            renew_time: Some(now),
            ..LeaseSpec::default()
        });
        match self.put(expect, lease).await {
            Ok(lease) => {
                let seen = observation(&lease);
                let term = format!("{}/{transitions}", lease.uid().unwrap_or_default());
                self.object = Some(lease);
                self.election.written(begun, since_boot(), transitions, seen);
                if let Some(until) = self.election.held_until() {
                    self.hold.extend(until);
                }
                if acquires && let Some(won) = self.election.term(since_boot()) {
                    info!(term, clean = won.clean, "elected");
                    self.roles.send_replace(Role::Leader { term: term.into(), clean: won.clean });
                    self.tell_aside(BECAME);
                }
            }
            Err(Failure::Kube(kube::Error::Api(status))) if status.code == 409 => {
                debug!("the lease has changed meanwhile");
                self.election.refused();
            }
            Err(Failure::Kube(kube::Error::Api(status))) if status.code == 404 && expect.is_some() => {
                self.election.refused();
            }
            Err(error) => self.fail("write", &error),
        }
    }

    /// Replaces the Lease if it still is of the expected version, or makes it.
    async fn put(&self, expect: Option<u64>, mut lease: Lease) -> Result<Lease, Failure> {
        let params = PostParams { field_manager: Some(self.name.clone()), ..PostParams::default() };
        if let Some(version) = expect {
            lease.metadata.resource_version = Some(version.to_string());
            return limited(self.limit(), self.api.replace(&self.name, &params, &lease)).await;
        }
        lease.metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        limited(self.limit(), self.api.create(&params, &lease)).await
    }

    /// How long a call may take: so that another can follow before the deadline, and never beyond it.
    fn limit(&self) -> Duration {
        let half = self.times.renew_deadline / 2;
        let left = self.election.held_until().map(|until| until.saturating_sub(since_boot()));
        left.map_or(half, |left| left.min(half))
    }

    fn fail(&mut self, what: &str, error: &Failure) {
        let advice = match error {
            Failure::Kube(kube::Error::Api(status)) if status.code == 403 => "; apply config/rbac",
            Failure::Kube(kube::Error::Api(status)) if status.code == 404 => {
                "; is the namespace there that --leader-elect-resource-namespace names?"
            }
            _ => "",
        };
        warn!(%error, "cannot {what} the lease{advice}; trying again");
        self.election.failed(since_boot());
    }

    /// Gives the lease up, so that nobody has to wait until it expires.
    async fn release(&mut self) {
        self.hold.end();
        for _ in 0..2 {
            let Some((version, transitions)) = self.election.to_release() else { return };
            let now = MicroTime(jiff::Timestamp::now());
            let mut lease = self.object.clone().unwrap_or_default();
            lease.spec = Some(LeaseSpec {
                acquire_time: Some(now.clone()),
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                lease_transitions: i32::try_from(transitions).ok(),
                renew_time: Some(now),
                ..LeaseSpec::default()
            });
            match self.put(Some(version), lease).await {
                Ok(_) => {
                    info!("lease released");
                    return self.tell(STOPPED).await;
                }
                Err(error) => {
                    debug!(%error, "cannot release the lease");
                    self.read().await;
                }
            }
        }
        warn!("the lease could not be released; another replica takes over when it has expired");
    }

    fn event(&self, (what, action): (&str, &str)) -> (Event, ObjectReference) {
        let event = Event {
            type_: EventType::Normal,
            reason: EVENT.to_owned(),
            note: Some(format!("{} {what}", self.me)),
            // Events that differ in their note only are taken for one that comes again.
            action: action.to_owned(),
            secondary: None,
        };
        let lease = self.object.clone().unwrap_or_default();
        let reference = ObjectReference { namespace: Some(self.namespace.clone()), ..lease.object_ref(&()) };
        (event, reference)
    }

    async fn tell(&self, what: (&str, &str)) {
        let (event, reference) = self.event(what);
        publish(self.recorder.clone(), event, reference).await;
    }

    fn tell_aside(&self, what: (&str, &str)) {
        let (event, reference) = self.event(what);
        tokio::spawn(publish(self.recorder.clone(), event, reference));
    }
}

async fn publish(recorder: Recorder, event: Event, reference: ObjectReference) {
    if let Err(error) = limited(EVENT_LIMIT, recorder.publish(&event, &reference)).await {
        debug!(%error, "an Event of the lease was not written");
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {0:?}")]
    Silence(Duration),
    #[error("{0}")]
    Kube(#[from] kube::Error),
}

async fn limited<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::Silence(limit)),
    }
}

fn version(lease: &Lease) -> u64 {
    lease.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn observation(lease: &Lease) -> Observation {
    let spec = lease.spec.clone().unwrap_or_default();
    let record = Record {
        holder: spec.holder_identity.unwrap_or_default(),
        transitions: spec.lease_transitions.and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
        duration: Duration::from_secs(
            spec.lease_duration_seconds.and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
        ),
    };
    Observation { version: version(lease), record: Some(record) }
}
