//! Brings the tables of `docs/config.md` up to date: `make docs`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("expected the page's path")?;
    let page = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    std::fs::write(&path, mcl_config::with_tables(&page)?).map_err(|e| format!("{path}: {e}"))?;
    Ok(())
}
