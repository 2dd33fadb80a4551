//! The reference of the job file (`docs/config.md`): its tables are made of the sections' types.
//!
//! Invariant: what stands between a table's two marks is made here; everything else on the page is kept.

use crate::sections::{JobFile, Key, Objective};
use toml::Value;

/// The page whose tables cannot be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no table of `[{section}]`: expected `{}` and, after it, `{END}`, each on a line of its own",
    begin(section)
)]
pub struct NoTable {
    /// Whose table is missing.
    pub section: &'static str,
}

/// Ends a table.
const END: &str = "<!-- end of keys -->";

/// Begins the table of a section.
fn begin(section: &str) -> String {
    format!("<!-- keys of [{section}], made by `make docs` -->")
}

/// The page with the tables of today's keys, defaults and meanings.
///
/// # Errors
/// When a section's marks are missing.
pub fn with_tables(page: &str) -> Result<String, NoTable> {
    let defaults = Value::try_from(JobFile::default()).unwrap_or(Value::Boolean(false));
    let page = JobFile::SECTIONS.iter().try_fold(page.to_owned(), |page, (section, keys)| {
        let values = section.split('.').try_fold(&defaults, |table, name| table.get(name));
        placed(&page, section, &table(keys, values))
    })?;
    placed(&page, OBJECTIVE, &objective_table(Objective::MocoV2))
}

/// The page with `table` between the marks of `section`.
fn placed(page: &str, section: &'static str, table: &str) -> Result<String, NoTable> {
    let (begin, missing) = (begin(section) + "\n", NoTable { section });
    let (before, rest) = page.split_once(&begin).ok_or(missing.clone())?;
    let (_, after) = rest.split_once(END).ok_or(missing)?;
    Ok(format!("{before}{begin}\n{table}\n{END}{after}"))
}

/// Marks of the table of defaults that an objective has of its own.
const OBJECTIVE: &str = "moco-v2";

fn objective_table(objective: Objective) -> String {
    let rows = objective
        .defaults()
        .iter()
        .map(|d| format!("| `{}.{}` | `{}` | {} |\n", d.section, d.key, d.value, d.source));
    "| key | default | from |\n|---|---|---|\n".to_owned() + &rows.collect::<String>()
}

fn table(keys: &[Key], defaults: Option<&Value>) -> String {
    let rows = keys.iter().filter_map(|key| {
        let default = match (key.default, defaults.and_then(|d| d.get(key.name))) {
            (Some(called), _) => called.to_owned(),
            // Its keys have a table of their own.
            (None, Some(Value::Table(_))) => return None,
            (None, Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_)))) => {
                value.to_string()
            }
            (None, Some(value)) => format!("`{value}`"),
            (None, None) => "unset".to_owned(),
        };
        let meaning: Vec<&str> = key.meaning.iter().map(|line| line.trim()).collect();
        Some(format!("| `{}` | {default} | {} |\n", key.name, meaning.join(" ").trim_end_matches('.')))
    });
    "| key | default | meaning |\n|---|---|---|\n".to_owned() + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_current() {
        let page = include_str!("../../../docs/config.md");
        let made = with_tables(page).unwrap();
        let other = page.lines().zip(made.lines()).find(|(is, is_to_be)| is != is_to_be);
        assert!(made == page, "docs/config.md is not current, `make docs` makes it; first: {other:?}");
    }

    #[test]
    fn a_page_without_marks_is_refused_and_what_stands_around_them_is_kept() {
        let page = include_str!("../../../docs/config.md");
        let without = page.replace(&begin("train"), "");
        assert_eq!(with_tables(&without), Err(NoTable { section: "train" }));
        let old = page.replace("| `seed` | 0 |", "| `seed` | 7 |");
        assert_ne!(old, page);
        assert_eq!(with_tables(&old).unwrap(), page);
    }
}
