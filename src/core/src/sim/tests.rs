//! Every story without a fault, and with every single one.
//!
//! What goes wrong is told with the command that plays it again, step by step.

use std::fmt;

use super::faults::Fault;
use super::stories;
use super::story::{BEGINNING, Course, How, Story};
use super::world::Mutation;

/// Where all delays come from: every story is played with each.
const SEEDS: [u64; 2] = [1, 2];

/// Steps that are shown of a course that went wrong.
const SHOWN: usize = 80;

/// A story, as one seed and one fault make it.
#[derive(Clone, Copy)]
struct Plan<'a> {
    story: &'a Story,
    seed: u64,
    fault: Option<Fault>,
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.story.name, self.seed)?;
        self.fault.map_or(Ok(()), |fault| write!(f, "/{fault}"))
    }
}

impl<'a> Plan<'a> {
    fn play(self) -> Course {
        self.story.tell(How { seed: self.seed, fault: self.fault, ..How::default() })
    }

    /// The plans that differ from this one in one fault.
    fn with_each_fault(self) -> impl Iterator<Item = Plan<'a>> {
        Fault::all(self.play().counts).into_iter().map(move |fault| Plan { fault: Some(fault), ..self })
    }

    /// What is wrong with it, if something is.
    fn fails(self) -> Option<String> {
        wrong(self.story, &self.play())
    }

    /// What is wrong with it once this mistake is made.
    fn fails_with(self, mutation: Mutation) -> Option<String> {
        let how = How { seed: self.seed, fault: self.fault, mutation: Some(mutation), ..How::default() };
        wrong(self.story, &self.story.tell(how))
    }
}

fn without_faults(story: &Story) -> impl Iterator<Item = Plan<'_>> {
    SEEDS.into_iter().map(move |seed| Plan { story, seed, fault: None })
}

/// What is wrong with a course, if something is: what must not happen, or an end that the faultless course does not have.
fn wrong(story: &Story, course: &Course) -> Option<String> {
    let end =
        (course.end != story.ends).then(|| format!("L2: it ends with {}, not {}", course.end, story.ends));
    course.breach.clone().or(end)
}

/// How it came about, and how to see it again.
fn retold(plan: Plan<'_>, what: &str) -> String {
    let how = How { seed: plan.seed, fault: plan.fault, logged: true, ..How::default() };
    let course = plan.story.tell(how);
    let begun = course.log.iter().position(|line| line.contains(BEGINNING)).unwrap_or(0);
    let log = &course.log[begun.max(course.log.len().saturating_sub(SHOWN))..];
    format!(
        "{what}\n{}\n\nSLICEGATE_SIM={plan} cargo test -p slicegate-core sim::tests::replay -- --ignored --nocapture\n",
        log.join("\n"),
    )
}

/// Plays a story with each fault that can happen to it.
fn survives(story: &Story) {
    for reference in without_faults(story) {
        if let Some(what) = reference.fails() {
            panic!("{}", retold(reference, &what));
        }
        let mut failed = reference.with_each_fault().filter_map(|plan| Some((plan, plan.fails()?)));
        if let Some((plan, what)) = failed.next() {
            let others: Vec<String> = failed.take(9).map(|(plan, what)| format!("{plan}: {what}")).collect();
            panic!("{}also:\n{}", retold(plan, &what), others.join("\n"));
        }
    }
}

macro_rules! stories {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            survives(&stories::$name());
        })*

        fn all() -> Vec<Story> {
            vec![$(stories::$name()),*]
        }
    };
}

stories! {
    one_job
    two_compete
    preemption
    gang_on_several_nodes
    retried_pods
    eviction_while_creating
    hold_and_resume
    node_lost
    agent_restart_with_running_pods
    elastic_up
    elastic_down
    reclaimable_pods
    finish_and_reuse
    deletion
    preempted_by_a_gang
    fragmentation
    a_large_one_among_small_ones
    mixed_profiles
    cpu_is_short
    replacement_overlaps
    a_pod_makes_way
}

#[test]
fn there_are_at_least_three_thousand_plans_over_twelve_stories() {
    let stories = all();
    let plans: usize =
        stories.iter().flat_map(without_faults).map(|plan| plan.with_each_fault().count()).sum();
    assert!(stories.len() >= 12 && plans >= 3000, "{plans} plans over {} stories", stories.len());
    println!("{plans} plans over {} stories", stories.len());
}

#[test]
fn the_same_plan_takes_the_same_course() {
    let story = stories::preemption();
    let plans: Vec<Plan<'_>> = without_faults(&story).flat_map(Plan::with_each_fault).collect();
    for plan in [plans[0], plans[plans.len() / 2], plans[plans.len() - 1]] {
        let how = How { seed: plan.seed, fault: plan.fault, logged: true, loud: true, ..How::default() };
        assert_eq!(story.tell(how).log, story.tell(how).log, "{plan}");
        assert_eq!(plan.fault.unwrap().to_string().parse(), Ok(plan.fault.unwrap()));
    }
}

/// A mistake counts as noticed when a plan goes wrong with it that goes well without it.
#[test]
fn every_mistake_that_is_made_on_purpose_is_noticed() {
    let stories = all();
    let mut unnoticed = Vec::new();
    for mutation in Mutation::ALL {
        let references = stories.iter().flat_map(without_faults);
        let plans = references.flat_map(|plan| {
            let counts = plan.play().counts;
            // What is read again before it is dropped is so for the sake of views like these.
            let back = (1..=counts.led).map(Fault::BackInTime).filter(|_| mutation == Mutation::Unconfirmed);
            let faults = back.chain(Fault::all(counts)).map(Some);
            [None].into_iter().chain(faults).map(move |fault| Plan { fault, ..plan })
        });
        let mut noticed = plans.filter_map(|plan| Some((plan, plan.fails_with(mutation)?)));
        match noticed.find(|(plan, _)| plan.fails().is_none()) {
            Some((plan, what)) => println!("{mutation:?} is noticed in {plan}: {what}"),
            None => unnoticed.push(mutation),
        }
    }
    assert_eq!(unnoticed, []);
}

#[test]
#[ignore = "tells the plan that SLICEGATE_SIM names, as in preemption/1 or preemption/1/crash-after-write:3"]
#[expect(clippy::disallowed_methods, reason = "it is the reader's word which plan to tell")]
fn replay() {
    let named = std::env::var("SLICEGATE_SIM").expect("SLICEGATE_SIM names a story, a seed and a fault");
    let mut parts = named.split('/');
    let (name, seed, fault) = (parts.next(), parts.next(), parts.next());
    let stories = all();
    let story = stories.iter().find(|story| Some(story.name) == name).expect("a story of that name");
    let seed = seed.map_or(SEEDS[0], |seed| seed.parse().expect("a number as seed"));
    let fault: Option<Fault> = fault.map(|fault| fault.parse().unwrap());
    let course = story.tell(How { seed, fault, logged: true, ..How::default() });
    println!("{}\n\nends: {}", course.log.join("\n"), course.end);
    assert_eq!(wrong(story, &course), None);
}
