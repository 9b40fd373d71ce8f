//! Plots of the results.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Result;

use crate::results::Row;

/// Draws.
pub(crate) fn draw(_dir: &Path, _rows: &[Row], _machine: &serde_json::Value) -> Result<()> {
    Ok(())
}
