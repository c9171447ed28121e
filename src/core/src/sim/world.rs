//! The clock, the queue of what is to happen, and where things go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::api_server::Key;
use super::controller::{Controller, Done};
use super::faults::{BACK, Counts, Fault};
use super::jobs::Job;
use super::kueue::Kueue;
use super::machine::Machine;
use super::objects::{Api, CheckEntry, Of, Phase};
use crate::agent::Operation;
use crate::id::{Attempt, GpuUuid, NodeName, PodUid, WorkloadUid};
use crate::plan::{Action, Limits};
use crate::profile::ProfileName;
use crate::time::Timestamp;
use crate::workload::{KeepRoom, Policy};

/// A mistake that is made on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Specs are written whatever has become of them.
    SpecUnguarded,
    /// Check states are written whatever has become of the Workload.
    ChecksUnguarded,
    /// Pods are not read again before claims are dropped.
    Unconfirmed,
    /// The answer to a write is not taken in.
    AnswersUnheeded,
    /// Slices are destroyed whoever holds them.
    HoldersOverlooked,
    /// What is made is written down only afterwards.
    IntentsUnwritten,
    /// What pods are given is not written down.
    BindingsForgotten,
    /// Slices are reported Idle before they exist.
    IdleTooEarly,
}

impl Mutation {
    pub const ALL: [Self; 8] = [
        Self::SpecUnguarded,
        Self::ChecksUnguarded,
        Self::Unconfirmed,
        Self::AnswersUnheeded,
        Self::HoldersOverlooked,
        Self::IntentsUnwritten,
        Self::BindingsForgotten,
        Self::IdleTooEarly,
    ];
}

/// What becomes of a write or a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Goes,
    /// Whoever was about to do it dies first.
    CrashBefore,
    /// It is done, and whoever did it dies before he knows.
    CrashAfter,
    /// It is refused for no fault of its own.
    Fails,
    /// It is done, and nobody says so. A call of NVML hangs instead.
    AnswerLost,
}

impl Fate {
    pub fn is_before(self) -> bool {
        matches!(self, Self::CrashBefore | Self::Fails)
    }

    pub fn is_after(self) -> bool {
        matches!(self, Self::CrashAfter | Self::AnswerLost)
    }

    /// How it reads in a log.
    pub fn note(self) -> &'static str {
        match self {
            Self::Goes => "",
            Self::CrashBefore => " — DIES BEFORE",
            Self::CrashAfter => " — DIES AFTER",
            Self::Fails => " — FAILS",
            Self::AnswerLost => " — NO ANSWER",
        }
    }
}

/// A call of NVML that is under way: the first or the second of its operation.
#[derive(Clone, Debug)]
pub struct Call {
    pub node: NodeName,
    pub incarnation: u32,
    pub gpu: GpuUuid,
    pub operation: Operation,
    /// The GPU instance that the first call has made.
    pub made: Option<u32>,
    pub is_second: bool,
}

/// Something that is to happen.
pub enum Event {
    StartController,
    Listed { controller: usize, of: Of },
    Delivered { controller: usize, of: Of, epoch: u32 },
    Decides { controller: usize },
    Request { controller: usize, action: Action },
    Answer { controller: usize, done: Done },
    StartAgent { node: NodeName },
    AgentListed { node: NodeName, incarnation: u32 },
    AgentTold { node: NodeName, incarnation: u32, epoch: u32 },
    AgentSteps { node: NodeName, incarnation: u32 },
    PluginRegisters { node: NodeName, incarnation: u32 },
    PluginTells { node: NodeName, incarnation: u32, devices: BTreeMap<ProfileName, BTreeSet<u32>> },
    Look { node: NodeName },
    Nvml(Call),
    Admits { node: NodeName, pod: PodUid, key: Key },
    Exits { node: NodeName, pod: PodUid, key: Key, phase: Phase },
    Killed { node: NodeName, pod: PodUid, key: Key },
    KubeletSyncs { node: NodeName },
    KubeletReports { node: NodeName },
    NodeSilent { node: NodeName },
    PodsLeave { node: NodeName },
    KueueActs,
    Reserves { workload: Arc<str>, uid: Arc<str>, checks: Vec<CheckEntry> },
    JobsAct,
}

/// The whole of it.
pub struct World {
    pub now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
    random: u64,
    pub api: Api,
    pub controllers: Vec<Controller>,
    pub machines: BTreeMap<NodeName, Machine>,
    pub kueue: Kueue,
    pub jobs: BTreeMap<String, Job>,
    pub jobs_awake: bool,
    /// The job of every Workload that ever was.
    pub owners: BTreeMap<WorkloadUid, String>,
    /// Slices that each reservation had on each node when it was told that it is ready.
    pub pledges: BTreeMap<(WorkloadUid, Attempt, NodeName, ProfileName), u32>,
    pub policy: Policy,
    pub limits: Limits,
    /// How far the watch cache of pods is behind that answers the next controller to start.
    pub pods_lag: Option<Duration>,
    pub mutation: Option<Mutation>,
    pub fault: Option<Fault>,
    /// Whether what happens belongs to the story.
    pub counting: bool,
    pub counts: Counts,
    /// Writes of controllers and agents.
    pub writes: u64,
    /// The first thing that must not have happened.
    pub breach: Option<String>,
    pub log: Option<Vec<String>>,
    pub loud: bool,
    /// How many steps there have been.
    pub steps: usize,
    /// How many events of each kind have been sent on their way.
    forwarded: BTreeMap<Of, usize>,
}

impl World {
    pub fn new(seed: u64, quota: u32) -> Self {
        Self {
            now: Timestamp(1_000_000),
            queue: BTreeMap::new(),
            serial: 0,
            random: seed,
            api: Api::new(),
            controllers: Vec::new(),
            machines: BTreeMap::new(),
            kueue: Kueue::new(quota),
            jobs: BTreeMap::new(),
            jobs_awake: false,
            owners: BTreeMap::new(),
            pledges: BTreeMap::new(),
            policy: Policy {
                hold: Duration::from_secs(20),
                max_hold: Duration::from_secs(80),
                idle_retention: Duration::from_mins(1),
                keep_room: KeepRoom {
                    after: Duration::from_secs(30),
                    lasts: Duration::from_mins(2),
                    ..KeepRoom::default()
                },
                ..Policy::default()
            },
            limits: Limits::default(),
            pods_lag: None,
            mutation: None,
            fault: None,
            counting: false,
            counts: Counts::default(),
            writes: 0,
            breach: None,
            log: None,
            loud: false,
            steps: 0,
            forwarded: BTreeMap::new(),
        }
    }

    /// A number of the range, the same for the same seed and course of events (SplitMix64).
    pub fn draw(&mut self, range: Range<u64>) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (z ^ (z >> 31)) % (range.end - range.start)
    }

    pub fn at(&mut self, at: Timestamp, event: Event) {
        self.serial += 1;
        self.queue.insert((at.max(self.now), self.serial), event);
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// After so many milliseconds.
    pub fn soon(&mut self, delay: Range<u64>, event: Event) {
        let delay = Duration::from_millis(self.draw(delay));
        self.after(delay, event);
    }

    /// Notes a step for the reader.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{} {}", Clock(now), what()));
        }
    }

    /// Notes what only who looks closely wants to read.
    pub fn whisper(&mut self, what: impl FnOnce() -> String) {
        if self.loud {
            self.say(what);
        }
    }

    /// Notes that something has happened that must not.
    pub fn breach(&mut self, what: impl FnOnce() -> String) {
        if self.breach.is_none() {
            let what = what();
            self.say(|| format!("BREACH: {what}"));
            self.breach = Some(what);
        }
    }

    /// A write of a controller's is about to be made.
    pub fn led_write_point(&mut self) -> Fate {
        self.counts.led += u32::from(self.counting);
        let fate = self.write_point();
        if self.counting && self.fault == Some(Fault::BackInTime(self.counts.led)) {
            self.pods_lag = Some(BACK);
            return Fate::CrashAfter;
        }
        fate
    }

    /// A write is about to be made.
    pub fn write_point(&mut self) -> Fate {
        if !self.counting {
            return Fate::Goes;
        }
        self.counts.writes += 1;
        let n = self.counts.writes;
        match self.fault {
            Some(Fault::CrashBeforeWrite(at)) if at == n => Fate::CrashBefore,
            Some(Fault::CrashAfterWrite(at)) if at == n => Fate::CrashAfter,
            Some(Fault::WriteFails(at)) if at == n => Fate::Fails,
            Some(Fault::AnswerLost(at)) if at == n => Fate::AnswerLost,
            _ => Fate::Goes,
        }
    }

    /// A call of NVML is about to be made.
    pub fn nvml_point(&mut self) -> Fate {
        if !self.counting {
            return Fate::Goes;
        }
        self.counts.calls += 1;
        let n = self.counts.calls;
        match self.fault {
            Some(Fault::CrashBeforeCall(at)) if at == n => Fate::CrashBefore,
            Some(Fault::CrashAfterCall(at)) if at == n => Fate::CrashAfter,
            Some(Fault::CallFails(at)) if at == n => Fate::Fails,
            Some(Fault::CallHangs(at)) if at == n => Fate::AnswerLost,
            _ => Fate::Goes,
        }
    }

    /// An event is about to be told. Whether it is lost.
    pub fn event_point(&mut self) -> bool {
        if !self.counting {
            return false;
        }
        self.counts.events += 1;
        self.fault == Some(Fault::EventLost(self.counts.events))
    }

    /// A controller is about to decide. It may be that it has not heard for a while, nor will.
    pub fn decision_point(&mut self, id: usize) {
        if !self.counting {
            return;
        }
        self.counts.decisions += 1;
        if let Some(Fault::StaleView(at, view)) = self.fault
            && at == self.counts.decisions
        {
            let until = self.now + view.lasts();
            self.say(|| {
                format!("controller {id} HEARS NOTHING of {:?} for {:?}", view.kinds(), view.lasts())
            });
            self.hold_feeds(id, view.kinds(), until);
        }
    }

    /// A controller has decided to do something. When it does so, if it is frozen first.
    pub fn act_point(&mut self) -> Option<Timestamp> {
        if !self.counting {
            return None;
        }
        self.counts.acts += 1;
        match self.fault {
            Some(Fault::OldLeader(at, wakes)) if at == self.counts.acts => Some(self.now + wakes.after()),
            _ => None,
        }
    }

    /// Does the next thing. `false` when there is nothing before that time.
    pub fn step(&mut self, until: Timestamp) -> bool {
        let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) else {
            self.now = until;
            return false;
        };
        let ((at, _), event) = entry.remove_entry();
        self.now = at;
        let beyond_api = matches!(
            event,
            Event::Nvml(_) | Event::Admits { .. } | Event::Exits { .. } | Event::Killed { .. }
        );
        self.happens(event);
        let written = self.api.note(self.now);
        if written {
            self.spread();
        }
        if written || beyond_api {
            self.judge();
        }
        true
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::StartController => self.start_controller(),
            Event::Listed { controller, of } => self.listed(controller, of),
            Event::Delivered { controller, of, epoch } => self.delivered(controller, of, epoch),
            Event::Decides { controller } => self.decides(controller),
            Event::Request { controller, action } => self.request(controller, &action),
            Event::Answer { controller, done } => self.answer(controller, done),
            Event::StartAgent { node } => self.start_agent(&node),
            Event::AgentListed { node, incarnation } => self.agent_listed(&node, incarnation),
            Event::AgentTold { node, incarnation, epoch } => self.agent_told(&node, incarnation, epoch),
            Event::AgentSteps { node, incarnation } => self.agent_steps(&node, incarnation),
            Event::PluginRegisters { node, incarnation } => self.plugin_registers(&node, incarnation),
            Event::PluginTells { node, incarnation, devices } => {
                self.plugin_tells(&node, incarnation, &devices);
            }
            Event::Look { node } => self.look(&node),
            Event::Nvml(call) => self.nvml_call(call),
            Event::Admits { node, pod, key } => self.admits(&node, &pod, &key),
            Event::Exits { node, pod, key, phase } => self.exits(&node, &pod, &key, phase),
            Event::Killed { node, pod, key } => self.killed(&node, &pod, &key),
            Event::KubeletSyncs { node } => self.kubelet_syncs(&node),
            Event::KubeletReports { node } => self.kubelet_reports(&node),
            Event::NodeSilent { node } => self.node_silent(&node),
            Event::PodsLeave { node } => self.pods_leave(&node),
            Event::KueueActs => self.kueue_acts(),
            Event::Reserves { workload, uid, checks } => self.reserves(&workload, &uid, checks),
            Event::JobsAct => self.jobs_act(),
        }
    }

    /// Sends what has been written on its way to those who watch.
    pub fn spread(&mut self) {
        for of in Of::ALL {
            let all = self.api.events(of);
            let sent = self.forwarded.insert(of, all).unwrap_or(0);
            for n in sent..all {
                self.forward(of);
                if of == Of::MigNodes {
                    let node = self.api.mig_event(n);
                    for name in self.machines.keys().cloned().collect::<Vec<_>>() {
                        // An agent takes its own events only, and passes over the others.
                        if name == node {
                            self.tell_agent(&name);
                        }
                    }
                }
            }
            if all == sent {
                continue;
            }
            match of {
                Of::Pods => {
                    for node in self.machines.keys().cloned().collect::<Vec<_>>() {
                        self.soon(1..10, Event::KubeletSyncs { node });
                    }
                    self.wake_jobs();
                    self.wake_kueue();
                }
                Of::Workloads => {
                    self.wake_jobs();
                    self.wake_kueue();
                }
                Of::Nodes => self.wake_jobs(),
                Of::MigNodes => {}
            }
        }
    }
}

/// A time as it reads in a log: seconds since the beginning.
struct Clock(Timestamp);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.0 - 1_000_000;
        write!(f, "{:>4}.{:03}", ms / 1000, ms % 1000)
    }
}
