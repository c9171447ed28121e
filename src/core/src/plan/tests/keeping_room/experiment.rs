//! What keeping room costs and what it gives, for several terms: the table on which the defaults rest.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::world::World;
use crate::geometry::Model;
use crate::geometry::tests::a100;
use crate::id::PodUid;
use crate::simulate::random::Random;
use crate::time::Timestamp;
use crate::workload::{CheckState, KeepRoom, RunLimit};

/// Jobs of one run, and the weight of each profile: MIGBench's, with few that take a whole GPU.
const JOBS: usize = 300;
const PROFILES: [(&str, u32, f64); 4] =
    [("1g.10gb", 1, 35.0), ("2g.20gb", 2, 25.0), ("3g.40gb", 4, 25.0), ("7g.80gb", 8, 5.0)];
/// GPUs on one node.
const GPUS: usize = 8;
/// Units asked for per unit that there is.
const LOAD: f64 = 1.4;
/// Runs of which the table shows the means: of those with one seed the demand is the same.
const SEEDS: u64 = 3;
/// The median of how long a job runs.
const MEDIAN: f64 = 600.0;
/// The deviation of its logarithm.
const SIGMA: f64 = 0.8;

struct Job {
    profile: usize,
    arrives: Timestamp,
    runs: Duration,
}

fn demand(seed: u64, begin: Timestamp) -> Vec<Job> {
    let mut random = Random::new(seed);
    let weights = PROFILES.map(|(_, _, weight)| weight);
    let sum: f64 = weights.iter().sum();
    let units: f64 = PROFILES.iter().map(|(_, units, weight)| f64::from(*units) * weight / sum).sum();
    let runs = MEDIAN * (SIGMA * SIGMA / 2.0).exp();
    let pause = units * runs / (LOAD * 8.0 * f64::from(u32::try_from(GPUS).unwrap()));
    let mut now = begin;
    let job = |_| {
        now = now + Duration::from_secs_f64(pause * random.exponential());
        let profile = random.pick(&weights);
        let runs = Duration::from_secs_f64(MEDIAN * (SIGMA * random.normal()).exp());
        Job { profile, arrives: now, runs }
    };
    (0..JOBS).map(job).collect()
}

/// How long the jobs waited, in the order in which they came. `known`: Kueue ends them when they end by themselves.
fn waits(jobs: &[Job], terms: KeepRoom, known: bool) -> Vec<Duration> {
    let mut world = World::with_nodes(&[&vec![a100(); GPUS]]);
    let mut waits: Vec<Option<Duration>> = vec![None; jobs.len()];
    let mut running: BTreeMap<(Timestamp, usize), PodUid> = BTreeMap::new();
    let (mut next, mut waiting) = (0, Vec::new());
    while waits.iter().any(Option::is_none) {
        let arrival = jobs.get(next).map(|job| job.arrives);
        let end = running.keys().next().map(|(end, _)| *end);
        let looks = world.plan().recheck_at;
        world.now = [arrival, end, looks].into_iter().flatten().min().unwrap();
        while let Some(entry) = running.first_entry().filter(|entry| entry.key().0 <= world.now) {
            let ((_, at), pod) = entry.remove_entry();
            world.force_delete(&pod, false);
            world.snap.workloads.remove(&name(at).as_str().into());
        }
        while let Some(job) = jobs.get(next).filter(|job| job.arrives <= world.now) {
            world.submit(&name(next), 1, &[(PROFILES[job.profile].0, 1)]);
            let policy = world.workload_mut(&name(next)).checks[0].policy.as_mut().unwrap();
            // Quota is not what they lack, and none gives it back.
            (policy.hold, policy.keep_room) = (Duration::from_secs(1_000_000), terms);
            let limit = RunLimit { left: job.runs, admitted: None };
            world.workload_mut(&name(next)).limit = known.then_some(limit);
            waiting.push(next);
            next += 1;
        }
        world.settle();
        let ready: Vec<usize> =
            waiting.extract_if(.., |at| world.state(&name(*at)) == CheckState::Ready).collect();
        for at in ready {
            let now = world.now;
            if let Some(limit) = &mut world.workload_mut(&name(at)).limit {
                limit.admitted = Some(now);
            }
            waits[at] = Some(world.now - jobs[at].arrives);
            running.insert((world.now + jobs[at].runs, at), world.create_pod(&name(at)));
        }
        world.settle();
    }
    waits.into_iter().flatten().collect()
}

fn name(at: usize) -> String {
    format!("job-{at:03}")
}

/// Mean, 95th percentile and maximum in minutes.
fn figures(mut waits: Vec<f64>) -> [f64; 3] {
    waits.sort_by(f64::total_cmp);
    let mean = waits.iter().sum::<f64>() / f64::from(u32::try_from(waits.len()).unwrap());
    [mean / 60.0, waits[(waits.len() - 1) * 95 / 100] / 60.0, waits[waits.len() - 1] / 60.0]
}

#[test]
#[ignore = "takes minutes: prints the table in the documentation of KeepRoom"]
fn table() {
    println!(
        "after (min) | workloads | percent | known ends | others: mean, p95 | whole GPU: mean, p95, max (min) | last ends (h)"
    );
    let minutes = |minutes| Duration::from_mins(minutes);
    let off = KeepRoom { workloads: 0, ..KeepRoom::default() };
    let on = |after, workloads, percent| KeepRoom { after: minutes(after), workloads, percent, ..off };
    let mut all = vec![(off, false)];
    all.extend([1, 5, 15, 30].map(|after| (on(after, 8, 15), false)));
    all.extend([(on(5, 8, 25), false), (on(5, 8, 50), false), (on(5, 8, 15), true)]);
    for (terms, known) in all {
        let (mut small, mut large, mut ends) = (Vec::new(), Vec::new(), 0.0);
        for seed in 1..=SEEDS {
            let begin = World::new().now;
            let jobs = demand(seed, begin);
            let waits = waits(&jobs, terms, known);
            let over = |(job, wait): (&Job, &Duration)| (job.arrives + *wait + job.runs) - begin;
            ends += jobs.iter().zip(&waits).map(over).max().unwrap().as_secs_f64() / 3600.0;
            for (job, wait) in jobs.iter().zip(waits) {
                let of = if PROFILES[job.profile].0 == "7g.80gb" { &mut large } else { &mut small };
                of.push(wait.as_secs_f64());
            }
        }
        let ([mean, p95, _], [large, large_p95, large_max]) = (figures(small), figures(large));
        #[expect(clippy::cast_precision_loss, reason = "a few seeds")]
        let ends = ends / SEEDS as f64;
        println!(
            "{:>2} | {} | {:>3} | {known} | {mean:.1}, {p95:.0} | {large:.0}, {large_p95:.0}, {large_max:.0} | {ends:.2}",
            terms.after.as_secs() / 60,
            terms.workloads,
            terms.percent
        );
    }
}

#[test]
fn the_demand_is_what_it_is_said_to_be() {
    let model: Model = a100();
    for (profile, units, _) in PROFILES {
        let known = model.profile(&profile.parse().unwrap()).unwrap();
        assert_eq!(u32::from(known.size), units, "{profile}");
    }
    let jobs = demand(1, Timestamp(0));
    let span = (jobs[JOBS - 1].arrives - Timestamp(0)).as_secs_f64();
    let work: f64 = jobs.iter().map(|job| f64::from(PROFILES[job.profile].1) * job.runs.as_secs_f64()).sum();
    let load = work / span / 64.0;
    assert!((LOAD - 0.3..LOAD + 0.3).contains(&load), "{load}");
}
