//! Many Jobs, one after another at a fixed rate, or all at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};

use super::load::{self, Load};
use super::observer::Track;
use super::writes::{self, Writes};
use super::{Bench, Extent, Setting, job, until};

/// Clients that submit at the same time, when it is to be as fast as the API server takes the Jobs.
pub const SUBMITTERS: usize = 10;
/// Pods of the larger Jobs, one of which comes after so many of the smaller ones.
pub const PODS: usize = 10;

/// What was measured in a burst.
pub struct Burst {
    /// Through which queue.
    pub setting: Setting,
    /// In which round.
    pub round: usize,
    /// From the first submission until all workloads were admitted.
    pub admitted: Duration,
    /// The same until all pods ran.
    pub running: Duration,
    /// Of each workload: since it was submitted.
    pub since_submitted: Vec<Duration>,
    /// Of each workload: from quota reserved to check Ready.
    pub to_ready: Vec<Duration>,
    /// Of each workload: from quota reserved to admitted, which is what a check adds.
    pub to_admitted: Vec<Duration>,
    /// Our writes until all pods ran.
    pub writes: Writes,
    /// Our writes from then until everything was given back.
    pub writes_back: Writes,
    /// Everybody's writes until all pods ran.
    pub everybodys: Writes,
    /// Processor time until all pods ran.
    pub load: Load,
}

impl Bench<'_> {
    /// Submits all Jobs and waits until all their pods run.
    pub(super) async fn burst(&mut self, setting: Setting, round: usize, extent: &Extent) -> Result<Burst> {
        self.prepare(setting).await?;
        let list = jobs_of(setting, round, extent.jobs);
        let pods: usize = list.iter().map(|(_, pods)| pods).sum();
        self.audit.take()?;
        let everybodys = writes::everybodys(&self.client).await?;
        let load = load::now(self.rig);

        let begun = Instant::now();
        // At a fixed rate nobody waits for an answer before the next one comes, as with many users who know nothing of each other.
        let clients = if extent.rate > 0.0 { list.len() } else { SUBMITTERS };
        let due = |n: usize| {
            let seconds = if extent.rate > 0.0 {
                f64::from(u32::try_from(n).unwrap_or(u32::MAX)) / extent.rate
            } else {
                0.0
            };
            begun + Duration::from_secs_f64(seconds)
        };
        let bench = &*self;
        let submitted: Vec<(String, Instant)> = stream::iter(list.iter().enumerate())
            .map(|(n, (name, pods))| async move {
                tokio::time::sleep_until(due(n).into()).await;
                let at = Instant::now();
                bench.submit(&job(name, setting.queue(), *pods, "100m", setting.resource())).await?;
                anyhow::Ok((name.clone(), at))
            })
            .buffer_unordered(clients)
            .try_collect()
            .await?;
        until("all workloads are admitted", || self.observer.admitted() == list.len()).await?;
        until("all pods run", || self.observer.running() == pods).await?;
        let running = begun.elapsed();
        let load = load::since(&load, &load::now(self.rig));
        // The agents' last word on who has which slice comes after the pods run.
        load::until_quiet(self.rig).await?;
        let everybodys = writes::since(&everybodys, &writes::everybodys(&self.client).await?);
        let taken = self.audit.take()?;

        let tracks: Vec<(Instant, Track)> =
            submitted.iter().map(|(name, at)| (*at, self.observer.track(name))).collect();
        self.clear().await?;
        let latest = tracks.iter().filter_map(|(_, track)| track.admitted).max().context("no Jobs")?;
        let spans = |from: fn(&(Instant, Track)) -> Option<Instant>, to: fn(&Track) -> Option<Instant>| {
            let span = |t: &(Instant, Track)| Some(to(&t.1)?.saturating_duration_since(from(t)?));
            tracks.iter().filter_map(span).collect()
        };
        Ok(Burst {
            setting,
            round,
            admitted: latest.duration_since(begun),
            running,
            since_submitted: spans(|t| Some(t.0), |t| t.admitted),
            to_ready: spans(|t| t.1.reserved, |t| t.ready),
            to_admitted: spans(|t| t.1.reserved, |t| t.admitted),
            writes: taken,
            writes_back: self.audit.take()?,
            everybodys,
            load,
        })
    }
}

/// Names and pods of the Jobs, in the order in which they are submitted: the same in every burst.
fn jobs_of(setting: Setting, round: usize, jobs: usize) -> Vec<(String, usize)> {
    let prefix = format!("{setting:?}-{round}").to_lowercase();
    let mut list = Vec::new();
    for n in 1..=jobs {
        list.push((format!("{prefix}-one-{n}"), 1));
        if n.is_multiple_of(PODS) {
            list.push((format!("{prefix}-ten-{n}"), PODS));
        }
    }
    list
}
