//! Jobs and their pods: the job controller, kube-scheduler, and what becomes of pods of nodes that are lost.

use std::sync::Arc;
use std::time::Duration;

use super::api_server::{Draft, Guard, Key, Marks, Object};
use super::objects::{Phase, Pod, PodSpec, Shape, WORKLOAD_LABEL, Workload, hostname, key, node_key};
use super::world::{Event, World};
use crate::id::{NodeName, PodUid, WorkloadUid};
use crate::resources::Resources;

/// A job.
#[expect(
    clippy::struct_excessive_bools,
    reason = "traits of a job and how far it is, which vary independently"
)]
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    pub shape: Shape,
    pub priority: i32,
    /// How many pods run at the same time: as asked for, and as admitted last.
    pub wanted: u32,
    pub runs: u32,
    /// How many have to succeed; none for a service, which never ends by itself.
    pub completions: Option<u32>,
    /// How long a pod runs.
    pub takes: Option<Duration>,
    /// Whether pods are replaced as soon as they are being deleted.
    pub replaces_early: bool,
    pub elastic: bool,
    /// Whether its pods may be moved.
    pub relocatable: bool,
    pub others: bool,
    pub submitted: bool,
    pub deleted: bool,
    pub is_done: bool,
    /// How many pods of it are to fail yet.
    pub fails: u32,
    /// The Workload whose uid its pod template bears.
    pub template: Option<WorkloadUid>,
    /// How many pods and Workloads it has had.
    serial: u32,
    generations: u32,
}

impl Job {
    pub fn new(name: &str, shape: Shape) -> Self {
        Self {
            name: name.to_owned(),
            shape,
            priority: 0,
            wanted: 1,
            runs: 0,
            completions: Some(1),
            takes: Some(Duration::from_secs(10)),
            replaces_early: false,
            elastic: false,
            relocatable: false,
            others: false,
            submitted: false,
            deleted: false,
            is_done: false,
            fails: 0,
            template: None,
            serial: 0,
            generations: 0,
        }
    }
}

impl Job {
    /// So many pods at the same time, each of which has to succeed once.
    pub fn pods(self, pods: u32) -> Self {
        Self { wanted: pods, completions: self.completions.map(|_| pods), ..self }
    }

    pub fn completions(self, completions: u32) -> Self {
        Self { completions: Some(completions), ..self }
    }

    /// Pods that run until somebody ends them.
    pub fn service(self) -> Self {
        Self { completions: None, takes: None, replaces_early: true, ..self }
    }

    pub fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    pub fn takes(self, seconds: u64) -> Self {
        Self { takes: Some(Duration::from_secs(seconds)), ..self }
    }

    pub fn elastic(self) -> Self {
        Self { elastic: true, ..self }
    }

    /// Its pods may be moved.
    pub fn relocatable(self) -> Self {
        Self { relocatable: true, ..self }
    }

    /// Somebody else's check has a say, too.
    pub fn with_others(self) -> Self {
        Self { others: true, ..self }
    }

    /// Its first pods fail.
    pub fn fails(self, pods: u32) -> Self {
        Self { fails: pods, ..self }
    }

    pub fn cpu(mut self, millicores: i64) -> Self {
        self.shape.requests.0.insert("cpu".into(), millicores);
        self
    }

    /// In the pool of the bystander.
    pub fn beside(mut self) -> Self {
        "aside".clone_into(&mut self.shape.pool);
        self
    }
}

fn is_active(pod: &Object<Pod>) -> bool {
    !pod.meta.deleting && !pod.status.is_terminal()
}

impl World {
    pub fn wake_jobs(&mut self) {
        if !std::mem::replace(&mut self.jobs_awake, true) {
            self.soon(3..20, Event::JobsAct);
        }
    }

    pub fn pods_of(&self, job: &str) -> Vec<Arc<Object<Pod>>> {
        self.api.pods.iter().filter(|p| *p.spec.job == *job).cloned().collect()
    }

    pub fn has_active_pods(&self, job: &str) -> bool {
        self.api.pods.iter().any(|p| *p.spec.job == *job && is_active(p))
    }

    /// The Workload of a job that counts: the last one that has been admitted, or else the last.
    pub fn workload_of(&self, job: &str) -> Option<Arc<Object<Workload>>> {
        let of_job = self.api.workloads.iter().filter(|w| *w.spec.job == *job && w.status.finished.is_none());
        of_job.max_by_key(|w| (w.status.admitted, w.meta.uid.len(), w.meta.uid.clone())).cloned()
    }

    fn succeeded(&self, job: &str) -> u32 {
        let pods = self.api.pods.iter().filter(|p| *p.spec.job == *job);
        u32::try_from(pods.filter(|p| p.status == Phase::Succeeded).count()).unwrap()
    }

    /// Pods that a job will not need any more.
    pub fn reclaimable(&self, job: &str) -> u32 {
        let Some(completions) = self.jobs[job].completions else { return 0 };
        let left = completions.saturating_sub(self.succeeded(job));
        self.jobs[job].runs.saturating_sub(left)
    }

    pub fn submit(&mut self, name: &str) {
        self.jobs.get_mut(name).unwrap().submitted = true;
        self.make_workload(name, name, None);
    }

    pub fn scale(&mut self, name: &str, pods: u32) {
        let job = self.jobs.get_mut(name).unwrap();
        let grows = pods > job.wanted;
        job.wanted = pods;
        if grows {
            job.generations += 1;
            let next = format!("{name}-{}", job.generations);
            let replaces = self.workload_of(name).map(|w| w.meta.key.name.clone());
            self.make_workload(name, &next, replaces);
        }
        self.wake_kueue();
        self.wake_jobs();
    }

    pub fn delete_job(&mut self, name: &str) {
        self.jobs.get_mut(name).unwrap().deleted = true;
        let workloads: Vec<Key> =
            self.api.workloads.iter().filter(|w| *w.spec.job == *name).map(|w| w.meta.key.clone()).collect();
        for key in workloads {
            let _ = self.api.workloads.delete(&key, &Guard::Any);
        }
        // Its pods follow when the garbage collector gets to them.
        self.soon(50..800, Event::JobsAct);
    }

    pub fn jobs_act(&mut self) {
        self.jobs_awake = false;
        let names: Vec<String> = self.jobs.values().filter(|j| j.submitted).map(|j| j.name.clone()).collect();
        for name in names {
            self.sync_job(&name);
        }
        self.bind_pods();
    }

    fn sync_job(&mut self, name: &str) {
        let pods = self.pods_of(name);
        let active: Vec<&Arc<Object<Pod>>> = pods.iter().filter(|p| is_active(p)).collect();
        let workload = self.workload_of(name);
        let job = &self.jobs[name];
        if job.completions.is_some_and(|n| self.succeeded(name) >= n) {
            self.jobs.get_mut(name).unwrap().is_done = true;
            return self.wake_kueue();
        }
        let admitted = workload.as_ref().filter(|w| w.status.admitted && !w.status.evicted && !job.deleted);
        let Some(workload) = admitted else {
            let suspended =
                !job.elastic || workload.is_none_or(|w| w.status.evicted || w.status.quota.is_none());
            let doomed = if suspended || job.deleted { active } else { Vec::new() };
            if !doomed.is_empty() {
                self.wake_kueue();
            }
            for pod in doomed {
                let _ = self.api.pods.delete(&pod.meta.key, &Guard::uid(&pod.meta.uid));
            }
            return;
        };
        let (uid, runs) = (super::objects::workload_uid(workload), workload.spec.pods.min(job.wanted));
        let left = job.completions.map_or(runs, |n| n.saturating_sub(self.succeeded(name)).min(runs));
        let there = if job.replaces_early {
            active.len()
        } else {
            pods.iter().filter(|p| !p.status.is_terminal()).count()
        };
        let job = self.jobs.get_mut(name).unwrap();
        job.runs = runs;
        // The template of an elastic job bears the label that it was given first.
        let template = if job.elastic { job.template.get_or_insert(uid).clone() } else { uid };
        for _ in there..left as usize {
            self.make_pod(name, &template);
        }
        for pod in active.iter().rev().take(active.len().saturating_sub(left as usize)) {
            let _ = self.api.pods.delete(&pod.meta.key, &Guard::uid(&pod.meta.uid));
        }
    }

    fn make_pod(&mut self, name: &str, template: &WorkloadUid) {
        let job = self.jobs.get_mut(name).unwrap();
        job.serial += 1;
        let spec = PodSpec {
            job: name.into(),
            shape: job.shape.clone(),
            relocatable: job.relocatable,
            gated: true,
            hostname: None,
            node: None,
        };
        let labels = [(WORKLOAD_LABEL.into(), template.as_str().into())].into();
        let key = key(&format!("{name}-{}", job.serial));
        let pod = key.name.clone();
        let _ = self.api.pods.create(Draft { key, marks: Marks { labels, ..Marks::default() }, spec });
        self.say(|| format!("pod {pod} is created"));
    }

    /// Binds released pods to their nodes where there is room by the Nodes' word.
    fn bind_pods(&mut self) {
        let waiting: Vec<Arc<Object<Pod>>> = self
            .api
            .pods
            .iter()
            .filter(|p| !p.spec.gated && p.spec.node.is_none() && is_active(p))
            .cloned()
            .collect();
        for pod in waiting {
            let node = self.api.nodes.iter().find(|n| {
                n.status.ready && pod.spec.hostname.as_deref() == Some(&hostname(&n.meta.key.name))
            });
            let Some(node) = node else { continue };
            let name = NodeName::new(node.meta.key.name.clone());
            let mut free = node.status.allocatable.clone();
            for other in self.api.pods.iter().filter(|p| p.spec.node.as_ref() == Some(&name)) {
                if !other.status.is_terminal() {
                    free.add(&asked(&other.spec.shape), -1);
                }
            }
            if free.first_lacking(&asked(&pod.spec.shape)).is_some() {
                continue;
            }
            let guard = Guard::uid(&pod.meta.uid);
            let _ = self.api.pods.patch(&pod.meta.key, &guard, |_, spec| spec.node = Some(name.clone()));
            self.say(|| format!("pod {} is bound to {name}", pod.meta.key));
        }
    }

    /// A pod of a job runs now.
    pub fn job_started(&mut self, job: &str, node: &NodeName, uid: &PodUid, key: &Key) {
        let job = self.jobs.get_mut(job).unwrap();
        let phase = if job.fails > 0 { Phase::Failed } else { Phase::Succeeded };
        job.fails = job.fails.saturating_sub(1);
        let Some(takes) = job.takes else { return };
        let end = Event::Exits { node: node.clone(), pod: uid.clone(), key: key.clone(), phase };
        self.after(takes, end);
    }

    /// The node controller has not heard of a node for a while.
    pub fn node_silent(&mut self, node: &NodeName) {
        let _ = self.api.nodes.patch_status(&node_key(node), &Guard::Any, |status| status.ready = false);
        self.say(|| format!("{node} is not ready"));
        self.after(Duration::from_secs(5), Event::PodsLeave { node: node.clone() });
    }

    /// Pods of a node that is lost are deleted; nobody there says when they are gone.
    pub fn pods_leave(&mut self, node: &NodeName) {
        let on_node: Vec<Arc<Object<Pod>>> =
            self.api.pods.iter().filter(|p| p.spec.node.as_ref() == Some(node)).cloned().collect();
        for pod in on_node {
            let _ = self.api.pods.delete(&pod.meta.key, &Guard::uid(&pod.meta.uid));
        }
    }

    /// A node is removed, and with it what was bound to it.
    pub fn remove_node(&mut self, node: &NodeName) {
        let _ = self.api.nodes.delete(&node_key(node), &Guard::Any);
        self.say(|| format!("Node {node} is removed"));
        let on_node: Vec<Arc<Object<Pod>>> =
            self.api.pods.iter().filter(|p| p.spec.node.as_ref() == Some(node)).cloned().collect();
        for pod in on_node {
            let _ = self.api.pods.delete_now(&pod.meta.key, &Guard::uid(&pod.meta.uid));
        }
    }
}

fn asked(shape: &Shape) -> Resources {
    let mut asked = shape.requests.clone();
    for (profile, count) in &shape.slices {
        asked.0.insert(profile.resource().into(), i64::from(*count));
    }
    asked
}
