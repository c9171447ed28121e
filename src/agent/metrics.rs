//! The agent's metrics.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntGaugeVec, Opts, Registry};
use slicegate_core::agent::Report;

use crate::api::convert::mig::state_to_api;

/// The agent's metrics.
pub struct Metrics {
    slices: IntGaugeVec,
    nvml: HistogramVec,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let slices = IntGaugeVec::new(
            Opts::new("slicegate_agent_slices", "Slices on the node, by profile and state"),
            &["profile", "state"],
        )?;
        let nvml = HistogramVec::new(
            HistogramOpts::new("slicegate_nvml_call_seconds", "Time of NVML calls that make or destroy")
                .buckets(prometheus::exponential_buckets(0.001, 2.0, 14)?),
            &["call", "result"],
        )?;
        registry.register(Box::new(slices.clone()))?;
        registry.register(Box::new(nvml.clone()))?;
        Ok(Self { slices, nvml })
    }

    pub(super) fn nvml_call(&self, call: &str, ok: bool, elapsed: Duration) {
        self.nvml.with_label_values(&[call, if ok { "ok" } else { "error" }]).observe(elapsed.as_secs_f64());
    }

    pub(super) fn set_slices(&self, reports: &[Report]) {
        // Labels that no slice has any more must vanish.
        self.slices.reset();
        for report in reports {
            let state = format!("{:?}", state_to_api(report.state));
            self.slices.with_label_values(&[report.slice.profile.as_str(), &state]).inc();
        }
    }
}
