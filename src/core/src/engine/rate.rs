//! How many slices of a profile are likely to be asked for soon.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::profile::ProfileName;
use crate::time::Timestamp;

/// How far back requests tell of those to come: of one that is so old a third still counts. Requests come in waves, so within a
/// shorter time as many are to be expected as within this.
const MEMORY: Duration = Duration::from_mins(15);

/// How often slices of each profile have been asked for of late.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    seen: BTreeMap<ProfileName, Seen>,
}

/// So many slices, as if they had been asked for just at this time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    weight: f64,
    at: Timestamp,
}

/// What is left of a request's weight after so long.
fn faded(age: Duration) -> f64 {
    (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

impl Rates {
    /// Notes a request for so many slices of a profile. Requests may be told of in any order.
    pub fn note(&mut self, at: Timestamp, profile: &ProfileName, slices: u32) {
        let seen = self.seen.entry(profile.clone()).or_insert(Seen { weight: 0.0, at });
        let latest = seen.at.max(at);
        seen.weight = seen.weight * faded(latest - seen.at) + f64::from(slices) * faded(latest - at);
        seen.at = latest;
    }

    /// Until when more than `count` slices of a profile are to be expected within `ahead`, if they are asked for as often as of
    /// late. `None` if none has been asked for as long as can be remembered: then nothing is known.
    pub fn expects_more_than(&self, count: u32, profile: &ProfileName, ahead: Duration) -> Option<Timestamp> {
        let seen = self.seen.get(profile)?;
        let expected = seen.weight * ahead.max(MEMORY).as_secs_f64() / MEMORY.as_secs_f64();
        if expected <= 0.0 {
            return Some(seen.at);
        }
        // It never comes to nothing.
        if count == 0 {
            return Some(Timestamp(i64::MAX));
        }
        let lasts = (expected / f64::from(count)).ln() * MEMORY.as_secs_f64();
        Some(seen.at + Duration::from_secs_f64(lasts.max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const AHEAD: Duration = Duration::from_mins(5);

    fn profile() -> ProfileName {
        "1g.10gb".parse().unwrap()
    }

    fn until(rates: &Rates, count: u32) -> Option<Timestamp> {
        rates.expects_more_than(count, &profile(), AHEAD)
    }

    #[test]
    fn nothing_is_known_of_what_was_never_asked_for() {
        assert_eq!(until(&Rates::default(), 0), None);
    }

    #[test]
    fn as_many_are_expected_as_came_of_late() {
        let mut rates = Rates::default();
        // One every ten seconds, for hours: ninety in a quarter of an hour.
        for i in 0..2000 {
            rates.note(NOW + Duration::from_secs(10 * i), &profile(), 1);
        }
        let last = NOW + Duration::from_secs(19_990);
        assert!(until(&rates, 89).unwrap() > last);
        assert!(until(&rates, 92).unwrap() <= last);
        let in_an_hour = |count| rates.expects_more_than(count, &profile(), Duration::from_hours(1)).unwrap();
        assert!(in_an_hour(355) > last && in_an_hour(368) <= last);
        // When they stop coming, ever fewer.
        let (many, few) = (until(&rates, 20).unwrap() - last, until(&rates, 2).unwrap() - last);
        assert!(many > Duration::from_mins(22) && many < Duration::from_mins(23), "{many:?}");
        assert!(few > Duration::from_mins(57) && few < Duration::from_mins(58), "{few:?}");
        assert_eq!(until(&rates, 0), Some(Timestamp(i64::MAX)));
    }

    #[test]
    fn the_order_in_which_requests_are_told_of_does_not_matter() {
        let times = [0, 500, 90, 1400, 1400, 3].map(|s| NOW + Duration::from_secs(s));
        let (mut one, mut other) = (Rates::default(), Rates::default());
        for (at, reversed) in times.iter().zip(times.iter().rev()) {
            one.note(*at, &profile(), 3);
            other.note(*reversed, &profile(), 3);
        }
        for count in 0..6 {
            let (a, b) = (until(&one, count).unwrap(), until(&other, count).unwrap());
            assert!((a.0 - b.0).abs() <= 1, "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_request_for_none_says_that_none_is_asked_for() {
        let mut rates = Rates::default();
        rates.note(NOW, &profile(), 0);
        assert_eq!(until(&rates, 0), Some(NOW));
    }
}
