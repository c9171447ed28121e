//! One Job after another, on a cluster that has nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::writes::Writes;
use super::{Bench, SETTINGS, Setting, job, until};

/// What was measured with Jobs by themselves.
pub struct Alone {
    /// Through which queue.
    pub setting: Setting,
    /// Of each Job: from submitted to admitted.
    pub since_submitted: Vec<Duration>,
    /// Of each Job: from quota reserved to check Ready.
    pub to_ready: Vec<Duration>,
    /// Of each Job: from quota reserved to admitted.
    pub to_admitted: Vec<Duration>,
    /// Our writes until the pod ran and was known to have its slice, over all Jobs.
    pub writes: Writes,
    /// Our writes from then until everything was given back.
    pub writes_back: Writes,
}

impl Bench<'_> {
    /// One-pod Jobs, the settings in turn.
    pub(super) async fn alone(&mut self, samples: usize) -> Result<Vec<Alone>> {
        let mut all: Vec<Alone> = SETTINGS.into_iter().map(Alone::new).collect();
        for sample in 0..samples {
            for alone in &mut all {
                self.one(alone, sample).await.with_context(|| alone.setting.name())?;
            }
        }
        Ok(all)
    }

    async fn one(&mut self, alone: &mut Alone, sample: usize) -> Result<()> {
        let setting = alone.setting;
        self.prepare(setting).await?;
        self.audit.take()?;
        let name = format!("alone-{setting:?}-{sample}").to_lowercase();
        let submitted = Instant::now();
        self.submit(&job(&name, setting.queue(), 1, "100m", setting.resource())).await?;
        until("its pod runs", || self.observer.running() == 1).await?;
        let in_use = usize::from(setting.is_ours());
        until("its slice is in use", || self.observer.in_use() == in_use).await?;
        add(&mut alone.writes, self.audit.take()?);
        let track = self.observer.track(&name);
        let (reserved, admitted) =
            (track.reserved.context("no quota")?, track.admitted.context("not admitted")?);
        alone.since_submitted.push(admitted.duration_since(submitted));
        alone.to_admitted.push(admitted.duration_since(reserved));
        alone.to_ready.extend(track.ready.map(|ready| ready.saturating_duration_since(reserved)));
        self.clear().await?;
        add(&mut alone.writes_back, self.audit.take()?);
        Ok(())
    }
}

impl Alone {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            since_submitted: Vec::new(),
            to_ready: Vec::new(),
            to_admitted: Vec::new(),
            writes: Writes::new(),
            writes_back: Writes::new(),
        }
    }
}

fn add(sum: &mut Writes, more: Writes) {
    for (what, count) in more {
        *sum.entry(what).or_default() += count;
    }
}
