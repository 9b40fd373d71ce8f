//! Tables as kubectl prints them: upper-case headers, no lines, three spaces between columns.
#![forbid(unsafe_code)]

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table under construction.
pub(super) struct Columns(Table);

impl Columns {
    /// A table with these headers; one that ends in `>` has its column aligned to the right.
    pub(super) fn new(headers: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headers.iter().map(|h| h.trim_end_matches('>')));
        for (i, header) in headers.iter().enumerate() {
            if let Some(column) = table.column_mut(i) {
                column.set_padding((0, if i + 1 == headers.len() { 0 } else { 3 }));
                if header.ends_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self(table)
    }

    /// Adds a row; an empty cell shows as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|c| if c.is_empty() { "-".to_owned() } else { clean(&c) }));
    }

    /// The text, with a newline at its end.
    pub(super) fn text(self) -> String {
        format!("{}\n", self.0.trim_fmt())
    }
}

/// Text from elsewhere must neither break a row nor talk to the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
