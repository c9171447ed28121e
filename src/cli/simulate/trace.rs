//! Recorded requests: one JSON object a line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use slicegate_core::simulate::demand::{Ask, Request};
use slicegate_core::simulate::inventory::Catalogue;
use slicegate_core::simulate::random::Random;

use super::{Error, read as read_file};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Id,
    arrival: f64,
    duration: Option<f64>,
    slices: Vec<Slices>,
    #[serde(default = "one")]
    pods: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slices {
    profile: String,
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

/// The most slices of one request: a number beyond is a mistake, and would only take memory.
const MOST_SLICES: u64 = 1_000_000;

/// The requests of a file, in the order in which they come. The seed draws which of them may be moved.
pub fn read(file: &Path, catalogue: &Catalogue, seed: u64) -> Result<Vec<Request>, Error> {
    let text = read_file(file)?;
    let mut random = Random::new(seed);
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut requests = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason| Error::Line { file: file.to_owned(), line: number, reason };
        let mut request = parse(line, catalogue).map_err(wrong)?;
        request.drawn = random.unit();
        if let Some(before) = lines.insert(request.id.to_string(), number) {
            return Err(wrong(format!("id {:?} is that of line {before}, too", request.id)));
        }
        requests.push(request);
    }
    if requests.is_empty() {
        return Err(Error::Input(format!("{} has no request", file.display())));
    }
    requests.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    Ok(requests)
}

fn parse(line: &str, catalogue: &Catalogue) -> Result<Request, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        format!("column {}: {}", error.column(), text.strip_suffix(&place).unwrap_or(&text))
    })?;
    let time = |what, seconds: f64| {
        if seconds >= 0.0 && seconds.is_finite() {
            Ok(seconds)
        } else {
            Err(format!("{what} {seconds} is negative: expected seconds from 0"))
        }
    };
    time("arrival", line.arrival)?;
    line.duration.map(|seconds| time("duration", seconds)).transpose()?;
    let count = |slices: &Slices| u64::from(slices.count);
    let all = line.slices.iter().map(count).sum::<u64>().saturating_mul(line.pods.into());
    if all == 0 || line.slices.iter().any(|slices| slices.count == 0) {
        return Err(
            "nothing is asked for: expected at least one pod, and for each profile at least one slice"
                .to_owned(),
        );
    }
    if all > MOST_SLICES {
        return Err(format!("{all} slices are asked for, of which there can be {MOST_SLICES} at most"));
    }
    let ask = |slices: &Slices| {
        let profile = catalogue.find(&slices.profile).ok_or_else(|| unknown(&slices.profile, catalogue))?;
        Ok(Ask { profile, count: slices.count })
    };
    let slices: Vec<Ask> = line.slices.iter().map(ask).collect::<Result<_, String>>()?;
    let id = match line.id {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    };
    Ok(Request {
        id: id.into(),
        arrival: line.arrival,
        duration: line.duration,
        slices,
        pods: line.pods,
        drawn: 0.0,
    })
}

/// What to say of a profile that no GPU has.
pub fn unknown(profile: &str, catalogue: &Catalogue) -> String {
    let offers: Vec<&str> = catalogue.offers().iter().map(|offer| offer.name.as_str()).collect();
    format!("no GPU has a profile {profile:?}; there are {}", offers.join(", "))
}
