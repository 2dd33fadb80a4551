//! Rows of a run that were committed before anyone looked: read once, from `metrics.jsonl`.

use crate::model::Row;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// A line longer than this is no row: a file that is not ours must not fill the memory.
const LONGEST_LINE: u64 = 64 << 10;

/// Hands out the rows of steps below `below`, in the file's order; how many lines were no rows. A file that is not
/// there has none.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read_rows(path: &Path, below: u64, mut take: impl FnMut(Row)) -> io::Result<u64> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut line, mut strange) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, LONGEST_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(strange);
        }
        match serde_json::from_slice::<Row>(&line) {
            Ok(row) if row.step >= below => return Ok(strange),
            Ok(row) => take(row),
            Err(_) => strange += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::row;

    #[test]
    fn rows_below_a_step_are_read_and_what_is_no_row_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |step| serde_json::to_string(&row(step)).unwrap() + "\n";
        let text = line(0) + "nonsense\n" + &line(1) + &"x".repeat(200_000) + "\n" + &line(2) + &line(3) + "{\"step\"";
        std::fs::write(&path, text).unwrap();
        let mut rows = Vec::new();
        // The long line comes in four pieces.
        assert_eq!(read_rows(&path, 3, |row| rows.push(row)).unwrap(), 5);
        assert_eq!(rows, [row(0), row(1), row(2)]);
        assert_eq!(read_rows(&path, 100, |_| {}).unwrap(), 6);
        assert_eq!(read_rows(&dir.path().join("none"), 3, |_| panic!("a row")).unwrap(), 0);
        assert!(read_rows(dir.path(), 3, |_| {}).is_err());
    }

    #[test]
    fn a_row_is_read_as_the_coordinator_writes_it() {
        let line = r#"{"step":3,"epoch":0,"generation":1,"loss":null,"loss_per_level":[],"lr":0.1,"momentum":0.9,
            "grad_norm":null,"images_per_s":12.5,"workers":2,"data_wait_s":0.0,"step_s":1.25,"skipped":true,"time":1.5}"#;
        let row: Row = serde_json::from_str(line).unwrap();
        assert_eq!((row.step, row.loss, row.skipped, row.time), (3, None, true, 1.5));
    }
}
