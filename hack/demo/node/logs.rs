//! Times in logs, as moments of this program's clock.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// The kubelet logs the time of its time zone; time zones differ by multiples of this many seconds.
const ZONES: u64 = 15 * 60;

/// How often the clocks are read, to have them once without a pause in between.
const READINGS: usize = 100;

/// One moment by both clocks.
pub struct Clock {
    instant: Instant,
    wall: Timestamp,
}

impl Clock {
    /// The moment of now, as exactly as the machine's other work allows.
    pub fn now() -> Self {
        let read = || (Instant::now(), Timestamp::now(), Instant::now());
        let best = (0..READINGS).map(|_| read()).min_by_key(|(before, _, after)| *after - *before);
        let (instant, wall, _) = best.unwrap_or_else(read);
        Self { instant, wall }
    }

    /// When that was.
    pub fn at(&self, stamp: Timestamp) -> Instant {
        let since = stamp.as_nanosecond() - self.wall.as_nanosecond();
        let distance = Duration::from_nanos(u64::try_from(since.unsigned_abs()).unwrap_or(u64::MAX));
        let moment =
            if since < 0 { self.instant.checked_sub(distance) } else { self.instant.checked_add(distance) };
        moment.unwrap_or(self.instant)
    }
}

/// When a line of the last quarter of an hour was written that begins like `I1124 12:46:10.123456`.
pub fn at_klog(line: &str) -> Option<Instant> {
    let mut time = line.split_whitespace().nth(1)?.splitn(3, ':').skip(1);
    let minutes: u64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    let of_hour = Duration::from_secs(minutes * 60) + Duration::try_from_secs_f64(seconds).ok()?;
    let now = Clock::now();
    let ago = (now.wall.as_nanosecond() - i128::try_from(of_hour.as_nanos()).ok()?)
        .rem_euclid(i128::from(ZONES) * 1_000_000_000);
    now.instant.checked_sub(Duration::from_nanos(u64::try_from(ago).ok()?))
}

/// A line of a container's log as the runtime keeps it.
pub struct Line {
    /// When it was written.
    pub stamp: Option<Timestamp>,
    /// What was written.
    pub text: String,
}

impl Line {
    /// Takes apart time, stream, completeness and text.
    pub fn parse(line: &str) -> Self {
        let mut parts = line.splitn(4, ' ');
        let stamp = parts.next().and_then(|stamp| stamp.parse().ok());
        Self { stamp, text: parts.nth(2).unwrap_or_default().to_owned() }
    }

    /// Whether the agent says this of a profile.
    pub fn says(&self, message: &str, profile: &str) -> bool {
        let line: Value = serde_json::from_str(&self.text).unwrap_or_default();
        line["fields"]["message"] == message && line["fields"]["profile"] == profile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_logs_are_moments() {
        let clock = Clock::now();
        let second = Duration::from_secs(1);
        let line = Line::parse(&format!("{} stdout F some text", clock.wall + second));
        assert_eq!(line.text, "some text");
        assert_eq!(clock.at(line.stamp.unwrap()), clock.instant + second);

        let then = clock.wall - Duration::from_secs(70);
        let of_hour = then.as_nanosecond().rem_euclid(3_600_000_000_000);
        let (minutes, rest) = (of_hour / 60_000_000_000, of_hour % 60_000_000_000);
        let klog = format!(
            "I1124 05:{minutes:02}:{}.{:09} 1 manager.go",
            rest / 1_000_000_000,
            rest % 1_000_000_000
        );
        let found = at_klog(&klog).unwrap();
        let wanted = clock.instant.checked_sub(Duration::from_secs(70)).unwrap();
        let off = found.max(wanted) - found.min(wanted);
        assert!(off < Duration::from_millis(5), "{off:?}");
        assert!(at_klog("panic: something").is_none());
    }
}
