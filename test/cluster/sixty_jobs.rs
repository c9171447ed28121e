//! Twice as much as fits, from three namespaces, undisturbed and with processes killed at random.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde_json::Value;
use slicegate_rig::operator::three_nodes;

use crate::checker::Checker;
use crate::support::{World, job};

/// 60 Jobs of mixed profiles: about 200 placement units where there are 104.
fn jobs(seconds: [&str; 3]) -> Vec<Value> {
    let mix =
        [("7g.80gb", 12), ("3g.40gb", 14), ("2g.20gb", 10), ("1g.10gb", 12), ("1g.6gb", 6), ("2g.12gb", 6)];
    let mut jobs = Vec::new();
    let mut left = mix;
    while jobs.len() < 60 {
        for (profile, count) in &mut left {
            if *count > 0 {
                *count -= 1;
                let number = jobs.len();
                let namespace = ["red", "green", "blue"][number % 3];
                let seconds = seconds[number / 3 % 3];
                jobs.push(job(namespace, &format!("job-{number}"), 1, &[(profile, 1)], seconds));
            }
        }
    }
    jobs
}

pub async fn submit_all(world: &World, seconds: [&str; 3]) -> Result<Vec<(String, String)>> {
    for namespace in ["red", "green", "blue"] {
        world.namespace(namespace).await?;
    }
    let mut names = Vec::new();
    for job in jobs(seconds) {
        world.submit(&job).await?;
        let metadata = &job["metadata"];
        names.push((
            metadata["namespace"].as_str().unwrap().to_owned(),
            metadata["name"].as_str().unwrap().to_owned(),
        ));
    }
    Ok(names)
}

pub async fn done(world: &World, names: &[(String, String)]) -> Result<usize> {
    let mut count = 0;
    for (namespace, name) in names {
        count += usize::from(world.job_done(namespace, name).await?);
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_jobs_share_what_holds_half_of_them() -> Result<()> {
    let world = World::with(three_nodes()).await?;
    let checker = Checker::start(&world);
    let begun = Instant::now();
    let names = submit_all(&world, ["0.5", "1", "1.5"]).await?;
    world
        .until("all 60 Jobs are complete", || async { Ok(done(&world, &names).await? == names.len()) })
        .await?;
    let elapsed = begun.elapsed();
    world.until_released().await?;
    let looks = checker.finish(&world).await?;
    println!("60 Jobs in {elapsed:.1?}, looked at {looks} times");
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_jobs_complete_though_controller_and_agents_are_killed() -> Result<()> {
    let world = World::with(three_nodes()).await?;
    let checker = Checker::start(&world);
    let mut random = Random::new();
    println!("seed {}", random.0);
    let victims = ["controller", "agent-gpu-a100", "agent-gpu-h100", "agent-gpu-a30"];
    let killing = async {
        let mut killed = Vec::new();
        while killed.len() < 5 {
            tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
            // The controller every other time: it is the one that all depends on.
            let victim = if killed.len() % 2 == 0 {
                victims[0]
            } else {
                victims[1 + usize::try_from(random.below(3))?]
            };
            world.rig.restart(victim).await?;
            killed.push(victim);
        }
        anyhow::Ok(killed)
    };
    let (names, killed) = futures::try_join!(submit_all(&world, ["3", "4", "5"]), killing)?;
    let before = done(&world, &names).await?;
    assert!(before < names.len(), "every Job was complete before the last kill");
    println!("killed {}; {before} of {} Jobs were complete then", killed.join(", "), names.len());
    world
        .until("all 60 Jobs are complete", || async { Ok(done(&world, &names).await? == names.len()) })
        .await?;
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

/// `SplitMix64`, seeded by the clock: the seed is printed.
pub struct Random(pub u64);

impl Random {
    pub fn new() -> Self {
        let nanoseconds = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        Self(u64::try_from(nanoseconds % u128::from(u64::MAX)).unwrap_or(1))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
