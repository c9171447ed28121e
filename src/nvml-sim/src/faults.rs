//! Calls that must fail, as configured.

use crate::{
    code::{Code, NvmlResult},
    config::Fault,
    state::State,
};

/// Whether calls of the function have to be counted.
pub(crate) fn concern(faults: &[Fault], function: &str) -> bool {
    faults.iter().any(|f| f.function == function)
}

/// Counts a call and fails it if it is one of those that must.
pub(crate) fn count(faults: &[Fault], state: &mut State, function: &str) -> NvmlResult<()> {
    if !concern(faults, function) {
        return Ok(());
    }
    let calls = state.calls.entry(function.to_owned()).or_default();
    *calls += 1;
    let due = |f: &&Fault| f.function == function && *calls >= f.nth && *calls - f.nth < f.times;
    faults.iter().find(due).map_or(Ok(()), |f| Err(Code(f.code)))
}
