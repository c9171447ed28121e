//! Leader election over a `coordination.k8s.io/v1` Lease: the effects to [`slicegate_core::election`]'s decisions.
//!
//! Own code, since no crate fits: kube-leader-election wants another kube and writes without a precondition;
//! kube-lease-manager compares the clocks of different machines; kubert's is for kube 1.

mod candidate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kube::Client;
use slicegate_core::election::{InvalidTimes, Loss, Times};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use super::clock::since_boot;
use candidate::Candidate;

/// How long the release of a lease may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// Flags of leader election, named as those of Kubernetes' own controllers.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Act only while this replica is elected. Without it, nothing keeps a second one from acting too.
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    pub leader_elect: bool,
    /// Seconds without a sign of life of the leader after which another replica takes over.
    #[arg(long = "leader-elect-lease-duration", default_value_t = 15, value_name = "SECONDS")]
    pub lease_duration: u32,
    /// Seconds without a successful renewal after which the leader steps down.
    #[arg(long = "leader-elect-renew-deadline", default_value_t = 10, value_name = "SECONDS")]
    pub renew_deadline: u32,
    /// Seconds between renewals, and between attempts.
    #[arg(long = "leader-elect-retry-period", default_value_t = 2, value_name = "SECONDS")]
    pub retry_period: u32,
    /// The Lease's name.
    #[arg(long = "leader-elect-resource-name", default_value = "slicegate-controller", value_name = "NAME")]
    pub resource_name: String,
    /// The Lease's namespace.
    #[arg(
        long = "leader-elect-resource-namespace",
        env = "POD_NAMESPACE",
        default_value = "slicegate-system",
        value_name = "NAMESPACE"
    )]
    pub resource_namespace: String,
    /// What this replica is called in the Lease, unlike every other; by default the host's name and something random.
    /// One that finds the Lease in its own name takes it to be left by an earlier life of its own, and takes it at once.
    #[arg(long = "leader-elect-identity", value_name = "NAME")]
    pub identity: Option<String>,
}

impl Args {
    fn times(&self) -> Times {
        let seconds = |n: u32| Duration::from_secs(u64::from(n));
        Times {
            lease_duration: seconds(self.lease_duration),
            renew_deadline: seconds(self.renew_deadline),
            retry_period: seconds(self.retry_period),
        }
    }

    fn identity(&self) -> std::io::Result<String> {
        if let Some(identity) = self.identity.as_ref().filter(|identity| !identity.is_empty()) {
            return Ok(identity.clone());
        }
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let host = rustix::system::uname();
        Ok(format!("{}_{}", host.nodename().to_string_lossy(), random.trim()))
    }
}

/// Why there is no election, or no term any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flags contradict each other.
    #[error(
        "--leader-elect-lease-duration, --leader-elect-renew-deadline and --leader-elect-retry-period: {0}"
    )]
    Times(#[from] InvalidTimes),
    /// There is nothing to be called by.
    #[error("cannot make up a name for the Lease; give one with --leader-elect-identity: {0}")]
    Identity(std::io::Error),
    /// The term is over.
    #[error(
        "no longer the leader: {0}. Another replica takes over; this one ends, to stand again when it is restarted"
    )]
    Lost(#[from] Loss),
    /// The task that renews has ended, as it never should.
    #[error("the task that renews the lease ended")]
    Ended,
}

/// What this replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It waits.
    Standby,
    /// It leads.
    Leader {
        /// Names this term, unlike every other.
        term: Arc<str>,
        /// Whether whoever led before has let everything end that was under way: then nothing of his can come late.
        clean: bool,
    },
}

/// Whether the lease is still held, by this machine's clock. Clones share it.
///
/// This narrows what a leader can do that was stopped or cut off and does not know yet; it fences off nothing, since the
/// process can stop after it has looked.
#[derive(Clone, Debug)]
pub struct Hold(Arc<AtomicU64>);

impl Hold {
    pub(crate) fn new(until: u64) -> Self {
        Self(Arc::new(AtomicU64::new(until)))
    }

    /// Whether the lease is held now.
    pub fn is_ours(&self) -> bool {
        nanoseconds(since_boot()) < self.0.load(Ordering::Acquire)
    }

    /// The time since boot, but none after the end of the lease: what happens then is another's.
    pub fn now(&self) -> Duration {
        since_boot().min(Duration::from_nanos(self.0.load(Ordering::Acquire)))
    }

    pub(crate) fn extend(&self, until: Duration) {
        self.0.store(nanoseconds(until), Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.0.store(0, Ordering::Release);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

type Renewal = JoinHandle<Result<(), Loss>>;

/// A part in the election.
#[derive(Debug)]
pub struct Lease {
    roles: watch::Receiver<Role>,
    hold: Hold,
    /// The part that renews, and what asks it to release.
    task: Option<(oneshot::Sender<()>, Renewal)>,
}

impl Lease {
    /// Stands for election; leads at once where there is to be none. `watches` may be silent for long, `calls` may not.
    pub fn stand(args: &Args, watches: Client, calls: Client) -> Result<Self, Error> {
        if !args.leader_elect {
            let role = Role::Leader { term: "alone".into(), clean: true };
            return Ok(Self { roles: watch::channel(role).1, hold: Hold::new(u64::MAX), task: None });
        }
        let times = args.times();
        times.check()?;
        let me = args.identity().map_err(Error::Identity)?;
        let (sender, roles) = watch::channel(Role::Standby);
        let hold = Hold::new(0);
        let candidate = Candidate::new(args, me, times, (watches, calls), sender, hold.clone());
        let (release, asked) = oneshot::channel();
        let task = tokio::spawn(candidate.run(asked));
        Ok(Self { roles, hold, task: Some((release, task)) })
    }

    /// What this replica is, and a way to learn when that changes.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.roles.clone()
    }

    /// Whether the lease is held.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Resolves when the term is lost.
    pub async fn lost(&mut self) -> Error {
        match &mut self.task {
            None => std::future::pending().await,
            Some((_, task)) => match task.await {
                Ok(Err(loss)) => loss.into(),
                Ok(Ok(())) | Err(_) => Error::Ended,
            },
        }
    }

    /// Lets another replica lead at once. Only to be called when nothing is under way any more that was decided in this term.
    pub async fn release(self) {
        let Some((release, task)) = self.task else { return };
        if release.send(()).is_ok() && tokio::time::timeout(FAREWELL, task).await.is_err() {
            warn!("gave up releasing the lease; another replica takes over when it has expired");
        }
    }
}
