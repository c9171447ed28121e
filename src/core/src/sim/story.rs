//! Stories: what users, administrators and machines do, step by step, each step when the one before has shown its effect.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::agent::Agent;
use super::api_server::{Draft, Guard};
use super::faults::{Counts, Fault};
use super::jobs::Job;
use super::machine::Machine;
use super::objects::{NodeDef, OTHERS, OURS, Phase, Shape, key, node_key};
use super::world::{Event, Mutation, World};
use crate::geometry::tests::a100;
use crate::geometry::{Model, Slice};
use crate::id::NodeName;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::CheckState;

/// When a step is taken.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Now,
    /// After so many seconds.
    Later(u64),
    /// The job's workload has quota.
    HasQuota(&'static str),
    /// It has none.
    HasNoQuota(&'static str),
    /// Our check says so of it.
    Says(&'static str, CheckState),
    /// So many of the job's pods run.
    Run(&'static str, u32),
    /// It is finished.
    IsDone(&'static str),
    /// The slices of the job's node are being made.
    NvmlWorks,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub enum Do {
    Submit(&'static str),
    Delete(&'static str),
    DeletePod(&'static str),
    Scale(&'static str, u32),
    /// Somebody else's check passes.
    Pass(&'static str),
    HoldQueue,
    ResumeQueue,
    RestartAgent(&'static str),
    RestartController,
    /// The node of one of the job's pods loses power.
    PowerOffUnder(&'static str),
    /// The Nodes that have lost power are removed.
    RemoveDead,
    Nothing,
}

/// A story.
pub struct Story {
    pub name: &'static str,
    /// Slices that the queue lends.
    pub quota: u32,
    pub nodes: Vec<Vec<Model>>,
    pub jobs: Vec<Job>,
    pub steps: Vec<(When, Do)>,
    /// How it ends, in the words of [`Course::end`].
    pub ends: &'static str,
}

/// A job of one pod that runs ten seconds.
pub fn job(name: &str, profile: &str) -> Job {
    pod_of(name, &[(profile, 1)])
}

/// A job of one pod with several slices.
pub fn pod_of(name: &str, slices: &[(&str, u32)]) -> Job {
    let shape = Shape {
        slices: slices.iter().map(|(profile, count)| (profile.parse().unwrap(), *count)).collect(),
        requests: [("cpu", 1000), ("pods", 1)].into_iter().collect(),
        pool: "main".to_owned(),
    };
    Job::new(name, shape)
}

/// What the log says when the story begins.
pub const BEGINNING: &str = "— the story begins —";
/// Who has no part in any story, and his node.
const BYSTANDER: &str = "bystander";
const ASIDE: &str = "aside";
/// How long a step may be waited for.
const PATIENCE: Duration = Duration::from_mins(10);
/// How long it may take until all is quiet after the last step: holds, retries and idle slices run out meanwhile.
const CALM: Duration = Duration::from_mins(6);
/// How long it has to stay so.
const QUIET: Duration = Duration::from_mins(3);
/// More steps than any course has that comes to rest.
const MOST: usize = 60_000;

/// How a story went.
pub struct Course {
    pub counts: Counts,
    /// How everything ended, up to the names of places.
    pub end: String,
    /// The first thing that must not have happened.
    pub breach: Option<String>,
    pub log: Vec<String>,
}

/// What goes wrong, on purpose or by mistake, and who listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    pub seed: u64,
    pub fault: Option<Fault>,
    pub mutation: Option<Mutation>,
    pub logged: bool,
    pub loud: bool,
}

impl Story {
    /// Tells the story.
    pub fn tell(&self, how: How) -> Course {
        let mut world = self.open(how);
        let untouched = Untouched::of(&world);
        let mut since = world.now;
        for (when, what) in &self.steps {
            let deadline = world.now + PATIENCE;
            while world.breach.is_none() && !world.is(*when, since) {
                let until = if let When::Later(seconds) = when {
                    since + Duration::from_secs(*seconds)
                } else {
                    deadline
                };
                world.step(until);
                if world.now >= deadline && !world.is(*when, since) {
                    world.breach(|| format!("L1: it never came about that {when:?}, for {what:?}"));
                }
                world.tires();
            }
            since = world.now;
            if world.breach.is_none() {
                world.take(*what);
            }
        }
        let calm = world.now + CALM;
        while world.breach.is_none() && world.step(calm) {
            world.tires();
        }
        let (writes, quiet) = (world.writes, world.now + QUIET);
        while world.breach.is_none() && world.step(quiet) {
            world.tires();
        }
        let late = world.writes - writes;
        if late > 0 {
            world.breach(|| format!("L2: {late} writes when all should be quiet"));
        }
        world.judge_end();
        let touched = Untouched::of(&world);
        if untouched != touched {
            world.breach(|| format!("L4: the bystander was touched: {untouched:?}, now {touched:?}"));
        }
        Course {
            counts: world.counts,
            end: world.end(),
            breach: world.breach.clone(),
            log: world.log.take().unwrap_or_default(),
        }
    }

    /// A cluster in which somebody else has been running for a while.
    fn open(&self, how: How) -> World {
        let mut world = World::new(how.seed, self.quota + 1);
        (world.fault, world.mutation) = (how.fault, how.mutation);
        world.log = how.logged.then(Vec::new);
        world.loud = how.loud;
        for (i, models) in self.nodes.iter().enumerate() {
            world.add_node(&format!("n{i}"), "main", models, None);
        }
        let foreign = Slice { start: 4, size: 1, profile: "1g.10gb".parse().unwrap() };
        world.add_node(ASIDE, ASIDE, &[a100()], Some(foreign));
        for job in &self.jobs {
            world.jobs.insert(job.name.clone(), job.clone());
        }
        world.jobs.insert(BYSTANDER.to_owned(), job(BYSTANDER, "1g.10gb").service().priority(100).beside());
        world.start_controller();
        world.submit(BYSTANDER);
        let opened = world.now + Duration::from_mins(1);
        while !world.is(When::Run(BYSTANDER, 1), world.now) && world.step(opened) {}
        let settled = world.now + Duration::from_secs(3);
        while world.step(settled) {}
        world.counting = true;
        world.say(|| BEGINNING.to_owned());
        world
    }
}

/// What nothing that happens elsewhere may change (L4).
#[derive(Debug, PartialEq)]
struct Untouched {
    generation: i64,
    pods: Vec<Arc<str>>,
    admitted: bool,
}

impl Untouched {
    fn of(world: &World) -> Self {
        let node = world.api.migs.get(&node_key(&ASIDE.into()));
        let running = world.pods_of(BYSTANDER).into_iter().filter(|p| p.status == Phase::Running);
        Self {
            generation: node.map_or(0, |node| node.meta.generation),
            pods: running.map(|p| p.meta.uid.clone()).collect(),
            admitted: world.workload_of(BYSTANDER).is_some_and(|w| w.status.admitted && !w.status.evicted),
        }
    }
}

impl World {
    fn add_node(&mut self, name: &str, pool: &str, models: &[Model], foreign: Option<Slice>) {
        let name = NodeName::from(name);
        self.machines.insert(name.clone(), Machine::new(models, foreign));
        let _ = self.api.nodes.create(Draft::new("", name.as_str(), NodeDef { pool: pool.to_owned() }));
        let allocatable: Resources = [("cpu", 8000), ("pods", 20)].into_iter().collect();
        let _ = self.api.nodes.patch_status(&node_key(&name), &Guard::Any, |status| {
            (status.ready, status.allocatable) = (true, allocatable);
        });
        self.after(Duration::ZERO, Event::StartAgent { node: name });
    }

    /// Ends what would never end.
    fn tires(&mut self) {
        self.steps += 1;
        if self.steps > MOST {
            self.breach(|| format!("L2: not at rest after {MOST} steps"));
        }
    }

    fn is(&self, when: When, since: Timestamp) -> bool {
        let runs = |job: &str| {
            self.pods_of(job).iter().filter(|p| p.status == Phase::Running && !p.meta.deleting).count()
        };
        let quota = |job: &str| self.workload_of(job).is_some_and(|w| w.status.quota.is_some());
        match when {
            When::Now => true,
            When::Later(seconds) => self.now >= since + Duration::from_secs(seconds),
            When::HasQuota(job) => quota(job),
            When::HasNoQuota(job) => !quota(job),
            When::Says(job, state) => {
                let check = self.workload_of(job).and_then(|w| w.status.check().map(|c| c.state));
                check == Some(state)
            }
            When::Run(job, pods) => runs(job) == pods as usize,
            When::IsDone(job) => {
                let mut all = self.api.workloads.iter().filter(|w| *w.spec.job == *job);
                all.any(|w| w.status.finished == Some("Succeeded"))
            }
            When::NvmlWorks => self.machines.values().any(|m| m.agent.as_ref().is_some_and(Agent::is_busy)),
        }
    }

    fn take(&mut self, what: Do) {
        self.say(|| format!("» {what:?}"));
        match what {
            Do::Submit(job) => self.submit(job),
            Do::Delete(job) => self.delete_job(job),
            Do::DeletePod(job) => {
                if let Some(pod) = self.pods_of(job).iter().find(|p| p.status == Phase::Running) {
                    let _ = self.api.pods.delete(&pod.meta.key, &Guard::Any);
                }
            }
            Do::Scale(job, pods) => self.scale(job, pods),
            Do::Pass(job) => {
                let name = self.workload_of(job).map(|w| w.meta.key.clone()).unwrap_or(key(job));
                let _ = self.api.workloads.patch_status(&name, &Guard::Any, |status| {
                    for check in status.checks.iter_mut().filter(|c| c.name == OTHERS) {
                        check.state = CheckState::Ready;
                    }
                });
            }
            Do::HoldQueue | Do::ResumeQueue => {
                self.kueue.held = matches!(what, Do::HoldQueue);
                self.wake_kueue();
            }
            Do::RestartAgent(node) => self.kill_agent(&node.into()),
            Do::RestartController => {
                let last = self.controllers.len() - 1;
                self.kill_controller(last, true);
            }
            Do::PowerOffUnder(job) => {
                if let Some(node) = self.pods_of(job).iter().find_map(|p| p.spec.node.clone()) {
                    self.power_off(&node);
                }
            }
            Do::RemoveDead => {
                let dead = self.machines.iter().filter(|(_, machine)| !machine.up);
                for node in dead.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.remove_node(&node);
                }
            }
            Do::Nothing => {}
        }
        if self.api.note(self.now) {
            self.spread();
        }
    }

    /// How everything stands, up to the names of places.
    pub fn end(&self) -> String {
        let mut end = String::new();
        for job in self.jobs.values().filter(|job| job.submitted && job.name != BYSTANDER) {
            let workload = self.workload_of(&job.name);
            let state = match &workload {
                _ if job.deleted => "deleted",
                _ if job.is_done => "finished",
                Some(w) if w.status.admitted => "admitted",
                Some(w) if w.status.quota.is_some() => "reserved",
                _ => "queued",
            };
            let pods = self.pods_of(&job.name);
            let run = pods.iter().filter(|p| p.status == Phase::Running).count();
            let wait = pods.iter().filter(|p| p.status == Phase::Pending).count();
            let claimed: u32 = self
                .api
                .migs
                .iter()
                .flat_map(|mig| &mig.spec.claims)
                .filter(|c| self.owners.get(&c.workload.uid) == Some(&job.name))
                .map(|c| c.slices)
                .sum();
            let check =
                workload.and_then(|w| w.status.checks.iter().find(|c| c.name == OURS).map(|c| c.state));
            let check = check.map(|state| format!(", {state:?}")).unwrap_or_default();
            let _ = write!(end, "{} {state}{check}: {run} run, {wait} wait, {claimed} claimed; ", job.name);
        }
        let slices: usize = self
            .machines
            .values()
            .filter(|m| m.up)
            .flat_map(|m| m.gpus.values())
            .map(|g| g.instances.len())
            .sum();
        // Without the bystander's and the one that is nobody's.
        let _ = write!(end, "{} slices", slices.saturating_sub(2));
        end
    }

    /// Nothing that is over is left behind.
    fn judge_end(&mut self) {
        let mut left = Vec::new();
        for mig in self.api.migs.iter() {
            for claim in &mig.spec.claims {
                let job = self.owners.get(&claim.workload.uid).cloned().unwrap_or_default();
                let wanted = self.jobs.get(&job).is_some_and(|job| !job.is_done && !job.deleted);
                if !wanted {
                    left.push(format!("S5: {} × {} of {job} are still claimed", claim.slices, claim.profile));
                }
            }
        }
        for (name, machine) in self.machines.iter().filter(|(_, machine)| machine.up) {
            for (gpu, silicon) in &machine.gpus {
                for (id, gi) in silicon.instances.iter().filter(|(_, gi)| !gi.foreign) {
                    let place = crate::geometry::Place::new(gpu, &gi.slice);
                    if !machine.journal.is_ours(&place, *id) {
                        left.push(format!("L2: {:?} on {name} is ours and nobody knows", gi.slice));
                    }
                }
            }
        }
        for pod in self.api.pods.iter().filter(|p| !p.status.is_terminal() && p.meta.deleting) {
            left.push(format!("L2: pod {} is still on its way out", pod.meta.key));
        }
        for what in left {
            self.breach(|| what);
        }
    }
}
