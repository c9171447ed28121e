//! The steps of a Job on a real node, each with its time: by the arrival of watch events here, and by what agent, kubelet and
//! container have logged, of which no watch tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::Value;
use slicegate::api::mig_node::SliceState;
use slicegate::api::{MIGNode, kueue};
use slicegate_rig::real_operator::RealOperator;

use super::logs::{Clock, Line, at_klog};
use crate::until;
use crate::watch::{Watches, watch};

/// Before the profile in the name of its resource.
const PREFIX: &str = "nvidia.com/mig-";

/// How far a Job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Kueue has reserved quota.
    Reserved,
    /// The controller has written the claim into the MIGNode.
    Claimed,
    /// The agent has made the slice.
    Made,
    /// The kubelet has taken it up.
    Acknowledged,
    /// The Node shows it: from now on it can be scheduled.
    Shown,
    /// The admission check is Ready.
    Ready,
    /// A pod has a node.
    Bound,
    /// The container has written its first line.
    Running,
    /// The Workload is finished.
    Finished,
    /// Nothing is claimed for it any more.
    Released,
}

/// A Job that was submitted.
pub struct Submitted {
    /// Its name.
    pub name: String,
    profile: String,
    begun: Instant,
    /// Where the kubelet's log ended then.
    kubelet_log: u64,
}

#[derive(Default)]
struct Known {
    /// The real node.
    node: String,
    /// The profile that is not ours to watch.
    beside: String,
    jobs: BTreeMap<String, BTreeMap<Step, Instant>>,
    /// Names of the Jobs by the uids of their Workloads, and of the pods by their Jobs.
    workloads: BTreeMap<String, String>,
    pods: BTreeMap<String, BTreeSet<String>>,
    mig: Option<MIGNode>,
    /// What the Node has shown as allocatable, and since when.
    shown: Vec<(Instant, BTreeMap<String, u32>)>,
}

/// Sees what happens.
pub struct Observer<'a> {
    real: &'a RealOperator<'a>,
    jobs: Api<Job>,
    namespace: String,
    agent: String,
    kubelet_log: PathBuf,
    clock: Clock,
    known: Arc<Mutex<Known>>,
    _watches: Watches,
}

impl<'a> Observer<'a> {
    /// Observes the Jobs of a namespace, the real node and its agent of now. `beside`: a profile that others have.
    pub async fn new(real: &'a RealOperator<'a>, namespace: &str, beside: &str) -> Result<Self> {
        let client = real.rig.client().await?;
        let node = real.node.name().to_owned();
        let kubelet = real.rig.process(&format!("kubelet-{node}")).context("no kubelet")?;
        let known = Arc::new(Mutex::new(Known { node, beside: beside.to_owned(), ..Known::default() }));
        let workloads: Api<kueue::Workload> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let watches = Watches(vec![
            watch(workloads, known.clone(), Known::workload, |_, _| {}),
            watch(pods, known.clone(), Known::pod, Known::pod_gone),
            watch(Api::<MIGNode>::all(client.clone()), known.clone(), Known::mig_node, |_, _| {}),
            watch(Api::<Node>::all(client.clone()), known.clone(), Known::node, |_, _| {}),
        ]);
        Ok(Self {
            real,
            jobs: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            agent: real.agent_pod().await?,
            kubelet_log: kubelet.log_path().to_owned(),
            clock: Clock::now(),
            known,
            _watches: watches,
        })
    }

    /// Submits a Job whose pods ask for slices of a profile.
    pub async fn submit(&self, job: &Value, profile: &str) -> Result<Submitted> {
        let job: Job = serde_json::from_value(job.clone())?;
        let (name, profile) = (job.name_any(), profile.to_owned());
        let kubelet_log = std::fs::metadata(&self.kubelet_log).map_or(0, |file| file.len());
        let begun = Instant::now();
        self.jobs.create(&PostParams::default(), &job).await?;
        Ok(Submitted { name, profile, begun, kubelet_log })
    }

    /// Whether a Job has reached a step, by the watches alone.
    pub fn has_reached(&self, job: &Submitted, step: Step) -> bool {
        self.known().jobs.get(&job.name).is_some_and(|steps| steps.contains_key(&step))
    }

    /// Removes a Job, and waits until its pods are gone.
    pub async fn remove(&self, job: &Submitted) -> Result<()> {
        self.jobs.delete(&job.name, &DeleteParams::background()).await?;
        let gone = || self.known().pods.get(&job.name).is_none_or(BTreeSet::is_empty);
        until(&format!("the pods of {} are gone", job.name), gone).await
    }

    /// The steps that a Job has reached, in time since it was submitted.
    pub fn steps(&self, job: &Submitted) -> Result<BTreeMap<Step, Duration>> {
        let mut steps = {
            let known = self.known();
            let mut steps = known.jobs.get(&job.name).cloned().unwrap_or_default();
            let resource = resource(&job.profile);
            let shows = |(at, all): &&(Instant, BTreeMap<String, u32>)| {
                *at >= job.begun && all.get(&resource).is_some_and(|count| *count > 0)
            };
            let showed = known.shown.iter().rfind(|(at, _)| *at < job.begun);
            if showed.is_none_or(|(_, all)| all.get(&resource).is_none_or(|count| *count == 0))
                && let Some((at, _)) = known.shown.iter().find(shows)
            {
                steps.insert(Step::Shown, *at);
            }
            steps
        };
        let made = self.agent_log()?.iter().find_map(|line| {
            let at = self.clock.at(line.stamp?);
            (at >= job.begun && line.says("slice made", &job.profile)).then_some(at)
        });
        if let Some(made) = made {
            steps.insert(Step::Made, made);
            steps.extend(self.acknowledged(job)?.map(|at| (Step::Acknowledged, at)));
        }
        let first = self.output(job)?.iter().filter_map(|line| line.stamp).min();
        steps.extend(first.map(|stamp| (Step::Running, self.clock.at(stamp))));
        Ok(steps.into_iter().map(|(step, at)| (step, at.saturating_duration_since(job.begun))).collect())
    }

    /// What the containers of a Job have written.
    pub fn output(&self, job: &Submitted) -> Result<Vec<Line>> {
        let pods = self.known().pods.get(&job.name).cloned().unwrap_or_default();
        let mut lines = Vec::new();
        for pod in pods {
            let log = self.real.node.logs(&self.namespace, &pod, "main")?;
            lines.extend(log.lines().map(Line::parse));
        }
        Ok(lines)
    }

    /// How often the agent has called NVML to make or destroy something.
    pub async fn nvml_calls(&self) -> Result<u64> {
        const CALLS: &str = "slicegate_nvml_call_seconds_count";
        let path = format!("/api/v1/namespaces/slicegate-system/pods/{}:8081/proxy/metrics", self.agent);
        let request = http::Request::get(path).body(Vec::new())?;
        let text = self
            .jobs
            .clone()
            .into_client()
            .request_text(request)
            .await
            .context("read the agent's metrics")?;
        let counts = text.lines().filter(|line| line.starts_with(CALLS));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Whether nothing is claimed on the real node and it has no slice, of one profile or at all, in spec, status and Node.
    pub fn is_without(&self, profile: Option<&str>) -> bool {
        let known = self.known();
        let (Some(mig), Some((_, shown))) = (&known.mig, known.shown.last()) else { return false };
        let is_it = |name: &str| name != known.beside && profile.is_none_or(|profile| profile == name);
        let mut wanted = mig.spec.gpus.iter().flat_map(|gpu| &gpu.slices);
        let mut there = mig.status.iter().flat_map(|status| &status.slices);
        let counts =
            |(name, count): (&String, &u32)| *count > 0 && name.strip_prefix(PREFIX).is_some_and(is_it);
        !known.is_claimed()
            && !wanted.any(|slice| is_it(&slice.profile))
            && !there.any(|slice| is_it(&slice.profile))
            && !shown.iter().any(counts)
    }

    /// Whether nothing is claimed on the real node, and it has an idle slice of the profile.
    pub fn is_idle(&self, profile: &str) -> bool {
        let known = self.known();
        let Some(mig) = &known.mig else { return false };
        let mut slices = mig.status.iter().flat_map(|status| &status.slices);
        !known.is_claimed() && slices.any(|s| s.profile == profile && s.state == SliceState::Idle)
    }

    fn agent_log(&self) -> Result<Vec<Line>> {
        let log = self.real.node.logs("slicegate-system", &self.agent, "agent")?;
        Ok(log.lines().map(Line::parse).collect())
    }

    /// When the kubelet took up the list of devices with the slice in it.
    fn acknowledged(&self, job: &Submitted) -> Result<Option<Instant>> {
        let mut log = File::open(&self.kubelet_log).context("open the kubelet's log")?;
        log.seek(SeekFrom::Start(job.kubelet_log))?;
        let mut text = String::new();
        log.read_to_string(&mut text).context("read the kubelet's log")?;
        let resource = format!("resourceName=\"{}\"", resource(&job.profile));
        let lists = text
            .lines()
            .filter(|line| line.contains("Processed device updates") && line.contains(&resource))
            .filter(|line| !line.ends_with("healthyCount=0"))
            .filter_map(at_klog);
        Ok(lists.filter(|at| *at >= job.begun).min())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn workload(&mut self, workload: &kueue::Workload) {
        let Some(job) = workload.owner_references().first().map(|owner| owner.name.clone()) else { return };
        self.workloads.insert(workload.uid().unwrap_or_default(), job.clone());
        let status = workload.status.clone().unwrap_or_default();
        let has = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
        self.mark(&job, Step::Reserved, has("QuotaReserved"));
        let ready = status.admission_checks.first().is_some_and(|c| c.state == kueue::CheckState::Ready);
        self.mark(&job, Step::Ready, ready);
        self.mark(&job, Step::Finished, has("Finished"));
    }

    fn pod(&mut self, pod: &Pod) {
        let Some(job) = pod.labels().get("batch.kubernetes.io/job-name").cloned() else { return };
        self.pods.entry(job.clone()).or_default().insert(pod.name_any());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        self.mark(&job, Step::Bound, node.is_some());
    }

    fn pod_gone(&mut self, pod: &Pod) {
        for pods in self.pods.values_mut() {
            pods.remove(&pod.name_any());
        }
    }

    fn mig_node(&mut self, mig: &MIGNode) {
        if mig.name_any() != self.node {
            return;
        }
        let claimed: BTreeSet<&String> = mig.spec.claims.iter().map(|claim| &claim.workload.uid).collect();
        for (uid, job) in self.workloads.clone() {
            let has = claimed.contains(&uid);
            self.mark(&job, Step::Claimed, has);
            let was = self.jobs.get(&job).is_some_and(|steps| steps.contains_key(&Step::Claimed));
            self.mark(&job, Step::Released, was && !has);
        }
        self.mig = Some(mig.clone());
    }

    fn node(&mut self, node: &Node) {
        if node.name_any() != self.node {
            return;
        }
        let allocatable =
            node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
        let ours: BTreeMap<String, u32> = allocatable
            .into_iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .filter_map(|(name, quantity)| Some((name, quantity.0.parse().ok()?)))
            .collect();
        if self.shown.last().is_none_or(|(_, last)| *last != ours) {
            self.shown.push((Instant::now(), ours));
        }
    }

    fn is_claimed(&self) -> bool {
        self.mig.iter().flat_map(|mig| &mig.spec.claims).any(|claim| claim.profile != self.beside)
    }

    fn mark(&mut self, job: &str, step: Step, reached: bool) {
        if reached {
            self.jobs.entry(job.to_owned()).or_default().entry(step).or_insert_with(Instant::now);
        }
    }
}

/// The extended resource of a profile.
pub fn resource(profile: &str) -> String {
    format!("{PREFIX}{profile}")
}
