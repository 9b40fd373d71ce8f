//! Plots of the results: horizontal bars, as SVG and as PNG.
//!
//! Text is drawn from an 8 by 8 bitmap font in PNG, so that no font needs to be installed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use font8x8::UnicodeFonts as _;
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, BitMapBackend, Color, DrawingArea, DrawingBackend, IntoDrawingArea as _, PathElement, RGBColor,
    Rectangle, SVGBackend, Text, TextStyle, WHITE,
};
use plotters::style::FontFamily;

use crate::results::{Better, Row};

const WIDTH: u32 = 1200;
const BAR: i32 = 22;
/// Width of the labels, and of the figures behind the bars.
const LABELS: i32 = 560;
const FIGURES: i32 = 130;
const OURS: RGBColor = RGBColor(30, 110, 180);
const THEIRS: RGBColor = RGBColor(160, 160, 160);
const MISSED: RGBColor = RGBColor(200, 80, 50);

/// One bar.
struct Bar {
    label: String,
    value: f64,
    color: RGBColor,
    figure: String,
}

/// A picture of bars, all in one unit.
struct Chart {
    title: String,
    bars: Vec<Bar>,
    /// A line across all bars.
    line: Option<f64>,
}

/// Writes `ratios` and one plot a thing measured in packets a second, with the machine below.
pub(crate) fn draw(dir: &Path, rows: &[Row], machine: &serde_json::Value) -> Result<()> {
    let of = |key: &str| machine.get(key).and_then(|v| v.as_str()).unwrap_or("?").to_owned();
    let note = format!("{}, Linux {}, {}, {}", of("machine"), of("kernel"), of("commit"), of("date"));
    let mut charts = BTreeMap::new();
    charts.insert("ratios".to_owned(), ratios(rows));
    for row in rows.iter().filter(|row| row.unit == "Mpps delivered" && row.goal == 7) {
        let (Some(ours), Some(theirs)) = (row.ours, row.theirs) else { continue };
        let name: String =
            row.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let chart = charts.entry(format!("rate-{}", name.replace("--", "-"))).or_insert_with(|| Chart {
            title: format!("{}: million packets a second delivered", row.name),
            bars: vec![bar("fastpath".to_owned(), ours, OURS)],
            line: None,
        });
        chart.bars.push(bar(row.peer.clone(), theirs, THEIRS));
    }
    for (name, chart) in charts.iter().filter(|(_, chart)| !chart.bars.is_empty()) {
        let height = u32::try_from(chart.bars.len())? * BAR.unsigned_abs() + 90;
        let size = (WIDTH, height);
        let svg = dir.join(format!("{name}.svg"));
        paint(&SVGBackend::new(&svg, size).into_drawing_area(), chart, &note, svg_text)?;
        let png = dir.join(format!("{name}.png"));
        paint(&BitMapBackend::new(&png, size).into_drawing_area(), chart, &note, bitmap_text)?;
    }
    Ok(())
}

fn bar(label: String, value: f64, color: RGBColor) -> Bar {
    Bar { label, value, color, figure: format!("{value:.3}") }
}

/// How well each goal is met: 1 is just so, more is better.
fn ratios(rows: &[Row]) -> Chart {
    let bars = rows.iter().filter_map(|row| {
        let ratio = row.ratio?;
        let share = match row.better {
            Better::Higher => ratio / row.goal_value,
            Better::Lower => row.goal_value / ratio,
        };
        Some(Bar {
            label: format!("{}: {} / {}", row.goal, row.name, row.peer),
            // Beyond ten times the goal one is as good as another.
            value: share.min(10.0),
            color: if row.met { OURS } else { MISSED },
            figure: format!("{ratio:.2} of {}", row.goal_value),
        })
    });
    Chart { title: "Goals: how many times each is met".to_owned(), bars: bars.collect(), line: Some(1.0) }
}

/// Draws `text` with its upper left corner at a place, so many pixels high.
type DrawText<B> = fn(&DrawingArea<B, Shift>, &str, (i32, i32), i32) -> Result<()>;

fn svg_text<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    text: &str,
    at: (i32, i32),
    high: i32,
) -> Result<()> {
    let style = TextStyle::from((FontFamily::SansSerif, f64::from(high)));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(|e| anyhow!("{e}"))
}

fn bitmap_text<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    text: &str,
    (left, top): (i32, i32),
    high: i32,
) -> Result<()> {
    // Up to half as high again, whole pixels only.
    let scale = (high / 12).max(1);
    for (n, letter) in (0..).zip(text.chars()) {
        let glyph = [font8x8::BASIC_FONTS.get(letter), font8x8::LATIN_FONTS.get(letter)];
        let Some(rows) = glyph.into_iter().flatten().next().or_else(|| font8x8::BASIC_FONTS.get('?')) else {
            continue;
        };
        for (y, row) in (0..).zip(rows) {
            for x in (0..8).filter(|x| row & (1 << x) != 0) {
                let (x, y) = (left + (n * 8 + x) * scale, top + 2 + y * scale);
                // By pixels: a rectangle of one is nothing to the backend.
                for (dx, dy) in (0..scale).flat_map(|dx| (0..scale).map(move |dy| (dx, dy))) {
                    area.draw_pixel((x + dx, y + dy), &BLACK).map_err(|e| anyhow!("{e}"))?;
                }
            }
        }
    }
    Ok(())
}

fn paint<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &Chart,
    note: &str,
    text: DrawText<B>,
) -> Result<()> {
    let failed = |e: String| anyhow!("plot: {e}");
    area.fill(&WHITE).map_err(|e| failed(e.to_string()))?;
    text(area, &chart.title, (10, 10), 24)?;
    let most =
        chart.bars.iter().map(|b| b.value).fold(chart.line.unwrap_or(0.0), f64::max).max(f64::MIN_POSITIVE);
    let wide = f64::from(i32::try_from(WIDTH)? - LABELS - FIGURES);
    #[expect(clippy::cast_possible_truncation, reason = "within the picture")]
    let place = |value: f64| LABELS + (value / most * wide) as i32;
    let mut top = 44;
    for bar in &chart.bars {
        let label: String = bar.label.chars().take(68).collect();
        text(area, &label, (10, top + 3), 14)?;
        let shape =
            Rectangle::new([(LABELS, top + 2), (place(bar.value), top + BAR - 3)], bar.color.filled());
        area.draw(&shape).map_err(|e| failed(e.to_string()))?;
        text(area, &bar.figure, (place(bar.value) + 6, top + 3), 14)?;
        top += BAR;
    }
    if let Some(line) = chart.line {
        let at = place(line);
        let line = PathElement::new(vec![(at, 40), (at, top)], BLACK.stroke_width(1));
        area.draw(&line).map_err(|e| failed(e.to_string()))?;
    }
    text(area, note, (10, top + 14), 14)?;
    area.present().map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_written() {
        let dir = std::env::temp_dir().join(format!("fpbench-plot-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let rounds = vec![(2.0, 1.0, serde_json::Value::Null)];
        let name = ("pod to pod, 60 B".to_owned(), "Mpps delivered");
        let row = Row::new((7, 1.0, Better::Higher), name, "kernel".to_owned(), rounds, Vec::new());
        draw(&dir, &[row], &serde_json::json!({"machine": "m"})).unwrap();
        for (file, start) in [
            ("ratios.svg", &b"<svg"[..]),
            ("ratios.png", b"\x89PNG"),
            ("rate-pod-to-pod-60-B.svg", b"<svg"),
            ("rate-pod-to-pod-60-B.png", b"\x89PNG"),
        ] {
            assert!(std::fs::read(dir.join(file)).unwrap().starts_with(start), "{file}");
        }
        let svg = std::fs::read_to_string(dir.join("rate-pod-to-pod-60-B.svg")).unwrap();
        assert!(svg.contains("kernel") && svg.contains("2.000"), "{svg}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
