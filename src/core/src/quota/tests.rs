//! A namespace whose ResourceQuota and pods are seen through two watches, either of which may lag behind.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::{PodUid, WorkloadUid};
use crate::time::Timestamp;

const MIG: &str = "requests.nvidia.com/mig-1g.10gb";
const NOW: Timestamp = Timestamp(1_000_000);

fn charge() -> Arc<Charge> {
    Arc::new(Charge { usage: Amounts::from_iter([(MIG, 1000), ("pods", 1000)]), ..Charge::default() })
}

/// What happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    /// A workload of so many pods gets quota from Kueue.
    Comes(u32),
    /// The job of an admitted workload creates a pod.
    Creates(usize),
    /// A pod ends; its job does not make another. No watch lags by as much as a pod's whole life.
    Ends(usize),
    /// The quota controller counts anew what is used.
    Recounts,
    /// The controller hears of so many changes of the quota.
    HearsOfQuota(usize),
    /// The controller hears of so many changes of pods.
    HearsOfPods(usize),
    /// The controller decides.
    Decides,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1..4_u32).prop_map(Event::Comes),
        6 => (0..64_usize).prop_map(Event::Creates),
        2 => (0..64_usize).prop_map(Event::Ends),
        2 => Just(Event::Recounts),
        3 => (1..4_usize).prop_map(Event::HearsOfQuota),
        3 => (1..4_usize).prop_map(Event::HearsOfPods),
        4 => Just(Event::Decides),
    ]
}

/// A change of a pod: which one of which workload, and whether it is over.
#[derive(Clone, Copy)]
struct Change {
    pod: usize,
    job: usize,
    over: bool,
}

/// A workload: how many pods it is to have, and which it has created.
struct Planned {
    pods: u32,
    created: u32,
    admitted: bool,
    /// As heard of: Kueue tells at the same time that so many will need nothing any more.
    over: u32,
}

struct Cluster {
    hard: i128,
    /// What the API server knows, and what has not been heard of yet.
    used: i128,
    running: Vec<(usize, usize)>,
    pods: usize,
    quota_events: VecDeque<i128>,
    pod_events: VecDeque<Change>,
    jobs: Vec<Planned>,
    /// What the controller has heard.
    namespace: Namespace,
}

fn key(job: usize) -> Arc<str> {
    format!("job-{job}").into()
}

fn member(job: usize, state: State) -> Member {
    Member { charge: charge(), state, keys: vec![key(job)] }
}

impl Cluster {
    fn new(hard: i128) -> Self {
        let mut cluster = Self {
            hard,
            used: 0,
            running: Vec::new(),
            pods: 0,
            quota_events: VecDeque::new(),
            pod_events: VecDeque::new(),
            jobs: Vec::new(),
            namespace: Namespace::default(),
        };
        cluster.hear_of_quota(0);
        cluster
    }

    fn hear_of_quota(&mut self, used: i128) {
        self.namespace.set_quota(Quota {
            name: "gpu".into(),
            hard: Amounts::from_iter([(MIG, self.hard * 1000)]),
            used: Amounts::from_iter([(MIG, used * 1000)]),
            ..Quota::default()
        });
    }

    fn hear_of_pod(&mut self, change: Change) {
        let uid = PodUid::from(format!("pod-{}", change.pod));
        let (live, over) = (member(change.job, State::Live), member(change.job, State::Over));
        if change.over {
            self.namespace.set_pod(NOW, &uid, Some(&live), Some(&over));
            self.jobs[change.job].over += 1;
        } else {
            self.namespace.set_pod(NOW, &uid, None, Some(&live));
        }
    }

    fn decide(&mut self, now: Timestamp) {
        self.namespace.jobs = (0..self.jobs.len())
            .map(|i| {
                let pods = vec![(charge(), self.jobs[i].pods - self.jobs[i].over)];
                let job = Job { id: key(i), keys: vec![key(i)], pods, admitted_elsewhere: false };
                (WorkloadUid::from(&*key(i)), job)
            })
            .collect();
        let mut account = Account::open(now, &self.namespace);
        let job = |i: usize| &self.namespace.jobs[&WorkloadUid::from(&*key(i))];
        (0..self.jobs.len()).filter(|i| self.jobs[*i].admitted).for_each(|i| account.promise(job(i)));
        for i in 0..self.jobs.len() {
            if !self.jobs[i].admitted && account.judge(job(i)) == Verdict::Fits {
                account.promise(job(i));
                self.jobs[i].admitted = true;
            }
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Comes(pods) => self.jobs.push(Planned { pods, created: 0, admitted: false, over: 0 }),
            Event::Creates(n) => {
                let to_come =
                    |i: &usize| self.jobs[*i].admitted && self.jobs[*i].created < self.jobs[*i].pods;
                let open: Vec<usize> = (0..self.jobs.len()).filter(to_come).collect();
                let Some(job) = (!open.is_empty()).then(|| open[n % open.len()]) else { return };
                assert!(self.used < self.hard, "S8: the API server refuses a pod of an admitted workload");
                self.used += 1;
                self.quota_events.push_back(self.used);
                self.jobs[job].created += 1;
                self.pods += 1;
                self.running.push((self.pods, job));
                self.pod_events.push_back(Change { pod: self.pods, job, over: false });
            }
            Event::Ends(n) => {
                if !self.running.is_empty() && self.quota_events.is_empty() {
                    let (pod, job) = self.running.swap_remove(n % self.running.len());
                    self.pod_events.push_back(Change { pod, job, over: true });
                }
            }
            Event::Recounts => {
                // The quota controller hears of pods in order, too, and has heard of all.
                self.used = i128::try_from(self.running.len()).unwrap();
                self.quota_events.push_back(self.used);
            }
            Event::HearsOfQuota(most) => {
                for _ in 0..most.min(self.quota_events.len()) {
                    let used = self.quota_events.pop_front().unwrap();
                    self.hear_of_quota(used);
                }
            }
            Event::HearsOfPods(most) => {
                for _ in 0..most.min(self.pod_events.len()) {
                    let change = self.pod_events.pop_front().unwrap();
                    self.hear_of_pod(change);
                }
            }
            Event::Decides => self.decide(NOW),
        }
    }

    /// Everything has been heard of, long enough ago, and decided.
    fn come_to_rest(&mut self) {
        self.apply(&Event::HearsOfPods(usize::MAX));
        self.apply(&Event::Recounts);
        self.apply(&Event::HearsOfQuota(usize::MAX));
        self.decide(NOW + Duration::from_mins(1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn however_far_the_watches_lag_no_pod_is_refused_and_in_the_end_nothing_waits_that_fits(
        hard in 1..6_i128,
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut cluster = Cluster::new(hard);
        for event in &events {
            cluster.apply(event);
        }
        cluster.come_to_rest();
        let left = |job: &Planned| i128::from(job.pods - job.over);
        let taken: i128 = cluster.jobs.iter().filter(|job| job.admitted).map(left).sum();
        for job in cluster.jobs.iter().filter(|job| !job.admitted) {
            prop_assert!(taken + left(job) > hard, "{} wait though {taken} of {hard} are taken", job.pods);
        }
    }
}

fn namespace(quotas: &[Quota]) -> Namespace {
    let mut namespace = Namespace::default();
    for quota in quotas {
        namespace.set_quota(quota.clone());
    }
    namespace
}

fn quota(name: &str, hard: &[(&str, i128)], scopes: &[Scope]) -> Quota {
    Quota {
        name: name.into(),
        hard: hard.iter().map(|(resource, amount)| (*resource, amount * 1000)).collect(),
        scopes: scopes.to_vec(),
        ..Quota::default()
    }
}

fn job(charge: Charge, pods: u32) -> Job {
    Job { id: "job".into(), keys: vec!["job".into()], pods: vec![(Arc::new(charge), pods)], ..Job::default() }
}

fn judge(quotas: &[Quota], job: &Job) -> Verdict {
    Account::open(NOW, &namespace(quotas)).judge(job)
}

fn lacks(verdict: &Verdict) -> Option<(&str, &str)> {
    match verdict {
        Verdict::Lacks(Lack::Amount { quota, resource, .. })
        | Verdict::Never(Lack::Amount { quota, resource, .. }) => Some((quota, resource)),
        _ => None,
    }
}

#[test]
fn all_scopes_must_match_and_each_is_about_what_it_says() {
    let name = |name: &str| Some(Arc::from(name));
    let names = |names: &[&str]| names.iter().map(|n| Arc::from(*n)).collect();
    let plain = Charge { usage: Amounts::from_iter([("pods", 1000)]), ..Charge::default() };
    let classed = |class: Option<Arc<str>>| Charge { priority_class: class, ..plain.clone() };
    let terminating = Charge { terminating: true, ..plain.clone() };
    let effortless = Charge { best_effort: true, ..plain.clone() };
    let affine = Charge { cross_namespace_affinity: true, ..plain.clone() };
    let class = Scope::PriorityClass;
    for (scope, charge, counts) in [
        (Scope::Terminating, &terminating, true),
        (Scope::Terminating, &plain, false),
        (Scope::NotTerminating, &terminating, false),
        (Scope::NotTerminating, &plain, true),
        (Scope::BestEffort, &effortless, true),
        (Scope::BestEffort, &plain, false),
        (Scope::NotBestEffort, &effortless, false),
        (Scope::NotBestEffort, &plain, true),
        (Scope::CrossNamespacePodAffinity, &affine, true),
        (Scope::CrossNamespacePodAffinity, &plain, false),
        (Scope::VolumeAttributesClass, &plain, false),
        (Scope::Unknown("Lunar".into()), &plain, true),
        (class(Requirement::Exists), &classed(name("high")), true),
        (class(Requirement::Exists), &plain, false),
        (class(Requirement::DoesNotExist), &classed(name("high")), false),
        (class(Requirement::DoesNotExist), &plain, true),
        (class(Requirement::In(names(&["high", "low"]))), &classed(name("low")), true),
        (class(Requirement::In(names(&["high"]))), &classed(name("low")), false),
        (class(Requirement::In(names(&["high"]))), &plain, false),
        (class(Requirement::NotIn(names(&["high"]))), &classed(name("high")), false),
        (class(Requirement::NotIn(names(&["high"]))), &classed(name("low")), true),
        (class(Requirement::NotIn(names(&["high"]))), &plain, true),
    ] {
        let verdict =
            judge(&[quota("q", &[("pods", 0)], std::slice::from_ref(&scope))], &job(charge.clone(), 1));
        assert_eq!(lacks(&verdict).is_some(), counts, "{scope:?} on {charge:?}");
        let both = [scope.clone(), Scope::VolumeAttributesClass];
        assert_eq!(judge(&[quota("q", &[("pods", 0)], &both)], &job(charge.clone(), 1)), Verdict::Fits);
    }
}

#[test]
fn what_can_never_fit_is_said_before_what_does_not_fit_now() {
    let charge = Charge { usage: Amounts::from_iter([("pods", 1000), ("cpu", 2000)]), ..Charge::default() };
    let mut full = quota("full", &[("pods", 4)], &[]);
    full.used = Amounts::from_iter([("pods", 4000)]);
    let small = quota("small", &[("cpu", 3)], &[]);
    let verdict = judge(&[full.clone(), small.clone()], &job(charge.clone(), 2));
    assert!(matches!(verdict, Verdict::Never(_)), "{verdict:?}");
    assert_eq!(lacks(&verdict), Some(("small", "cpu")));
    let verdict = judge(&[full, small], &job(charge, 1));
    assert!(matches!(verdict, Verdict::Lacks(_)), "{verdict:?}");
    assert_eq!(lacks(&verdict), Some(("full", "pods")));
}

#[test]
fn a_resource_of_which_nothing_is_asked_is_no_obstacle_however_far_it_is_exceeded() {
    let charge = Charge { usage: Amounts::from_iter([("pods", 1000), ("cpu", 0)]), ..Charge::default() };
    let mut exceeded = quota("q", &[("cpu", 1), ("memory", 1)], &[]);
    exceeded.used = Amounts::from_iter([("cpu", 9000), ("memory", 9000)]);
    assert_eq!(judge(&[exceeded], &job(charge, 1)), Verdict::Fits);
}

#[test]
fn a_container_that_does_not_name_what_is_counted_never_fits() {
    let unspecified = BTreeMap::from([("limits.cpu".into(), "main".into())]);
    let charge = Charge { usage: Amounts::from_iter([("pods", 1000)]), unspecified, ..Charge::default() };
    assert_eq!(
        judge(&[quota("q", &[("pods", 5), ("limits.memory", 5)], &[])], &job(charge.clone(), 1)),
        Verdict::Fits
    );
    let lack =
        Lack::Unspecified { quota: "q".into(), resource: "limits.cpu".into(), container: "main".into() };
    assert_eq!(judge(&[quota("q", &[("limits.cpu", 5)], &[])], &job(charge, 1)), Verdict::Never(lack));
}

#[test]
fn two_workloads_of_one_job_count_as_the_larger_of_them() {
    let pod = || Charge { usage: Amounts::from_iter([("pods", 1000)]), ..Charge::default() };
    let namespace = namespace(&[quota("q", &[("pods", 5)], &[])]);
    let mut account = Account::open(NOW, &namespace);
    account.promise(&job(pod(), 3));
    assert_eq!(account.judge(&job(pod(), 5)), Verdict::Fits, "it has three of the five");
    account.promise(&job(pod(), 5));
    assert_eq!(account.standings(None)[0].in_flight, 5000);
    let other = Job { id: "other".into(), ..job(pod(), 1) };
    assert!(matches!(account.judge(&other), Verdict::Lacks(_)));
}

#[test]
fn thousandths_count() {
    let slices = |n| Charge { usage: Amounts::from_iter([(MIG, n)]), ..Charge::default() };
    let odd = Quota { hard: Amounts::from_iter([(MIG, 1500)]), ..quota("q", &[], &[]) };
    assert_eq!(judge(std::slice::from_ref(&odd), &job(slices(1000), 1)), Verdict::Fits);
    assert!(
        matches!(judge(&[odd], &job(slices(1000), 2)), Verdict::Never(_)),
        "one and a half slices are one"
    );
}

#[test]
fn nothing_is_asked_for_when_all_pods_are_there_though_they_are_charged_otherwise_than_their_template() {
    let charge = |pods: i128| Charge { usage: Amounts::from_iter([("cpu", pods)]), ..Charge::default() };
    let mut namespace = namespace(&[quota("q", &[("cpu", 1)], &[])]);
    let there = Member { charge: Arc::new(charge(900)), state: State::Live, keys: vec!["job".into()] };
    namespace.set_pod(NOW, &PodUid::from("a"), None, Some(&there));
    assert_eq!(Account::open(NOW, &namespace).judge(&job(charge(1000), 1)), Verdict::Fits);
    assert!(matches!(Account::open(NOW, &namespace).judge(&job(charge(1000), 2)), Verdict::Never(_)));
}
