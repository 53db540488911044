//! Reference data: what the model was trained or tested on, from which the drift baseline is measured.

use std::path::Path;

use anyhow::{Context, Result, bail};
use plimsoll_protocol::bundle::{Feature, FeatureKind, InputContent, Manifest};
use plimsoll_runtime::{Tensor, read_tensor};

use super::golden::{data_sets, numbered};
use super::policy;
use super::tensors;
use crate::failure::{Refused, Usage};

/// Requests for the model: each a batch of rows. A CSV's header also names the columns of a tabular input.
pub fn read(manifest: &mut Manifest, path: &Path, categorical: &[String]) -> Result<Vec<Vec<Tensor>>> {
    if path.is_dir() {
        if !categorical.is_empty() {
            bail!(Usage(
                "--categorical names columns of a CSV, but the reference is a folder of tensors".into()
            ));
        }
        return samples(path);
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read reference {}", path.display()))?;
    let csv = Csv::parse(&text).map_err(|why| Refused(format!("reference {}: {why}", path.display())))?;
    name_columns(manifest, &csv, path, categorical)?;
    tensors::batches(manifest, &csv.rows)
        .map_err(|why| Refused(format!("reference {}: {why}", path.display())).into())
}

fn samples(dir: &Path) -> Result<Vec<Vec<Tensor>>> {
    let sets = data_sets(dir)?;
    let inputs = |set: &std::path::PathBuf| -> Result<Vec<Tensor>> {
        let files = numbered(set, "input_")?;
        files.iter().map(|f| Ok(read_tensor(f)?.1)).collect()
    };
    sets.iter().map(inputs).collect()
}

/// Columns belong to the inputs in order. Their names become the features of tabular inputs.
fn name_columns(manifest: &mut Manifest, csv: &Csv, path: &Path, categorical: &[String]) -> Result<()> {
    let widths: Vec<usize> =
        manifest.inputs.iter().map(|i| tensors::row_width(&i.shape)).collect::<Option<_>>().ok_or_else(
            || {
                Refused(
                "a CSV needs inputs whose rows have a fixed size: give the reference as a folder of tensors"
                    .into(),
            )
            },
        )?;
    let expected: usize = widths.iter().sum();
    if csv.header.len() != expected {
        bail!(Refused(format!(
            "reference {} has {} columns, a row of the model's inputs has {expected} values: leave out what the model \
             does not see (a target column, an index)",
            path.display(),
            csv.header.len()
        )));
    }
    if let Some(unknown) = categorical.iter().find(|name| !csv.header.contains(name)) {
        bail!(Usage(format!("--categorical {unknown:?}: {} has no such column", path.display())));
    }
    let mut names = csv.header.iter().enumerate();
    for (input, width) in manifest.inputs.iter_mut().zip(widths) {
        let names: Vec<(usize, &String)> = names.by_ref().take(width).collect();
        if input.content == InputContent::Tabular {
            let feature = |(at, name): &(usize, &String)| {
                if !categorical.contains(name) {
                    return Feature::new(*name, FeatureKind::Numeric);
                }
                let values = csv.rows.iter().filter_map(|row| row.get(*at).copied());
                let categories = policy::categories(values).unwrap_or_default();
                Feature { categories, ..Feature::new(*name, FeatureKind::Categorical) }
            };
            input.features = names.iter().map(feature).collect();
        }
    }
    Ok(())
}

/// Numbers under a header. An empty cell is a missing value.
struct Csv {
    header: Vec<String>,
    rows: Vec<Vec<f64>>,
}

impl Csv {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines =
            text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let (_, head) = lines.next().ok_or("it is empty")?;
        let header: Vec<String> = head.split(',').map(|c| c.trim().trim_matches('"').to_owned()).collect();
        if header.iter().all(|name| name.parse::<f64>().is_ok()) {
            return Err("its first row holds numbers where the names of the columns must stand".into());
        }
        if let Some(twice) =
            header.iter().enumerate().find(|(at, name)| header.iter().take(*at).any(|n| n == *name))
        {
            return Err(format!("column {:?} stands twice in its header", twice.1));
        }
        let mut rows = Vec::new();
        for (number, line) in lines {
            let cell = |(at, text): (usize, &str)| match text.trim().trim_matches('"') {
                "" => Ok(f64::NAN),
                text => text.parse::<f64>().map_err(|_| {
                    let column = header.get(at).map_or("?", String::as_str);
                    format!("line {}, column {column:?}: {text:?} is not a number", number + 1)
                }),
            };
            let row: Vec<f64> = line.split(',').enumerate().map(cell).collect::<Result<_, _>>()?;
            if row.len() != header.len() {
                return Err(format!(
                    "line {} has {} cells, the header has {}",
                    number + 1,
                    row.len(),
                    header.len()
                ));
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err("it has a header and no rows".into());
        }
        Ok(Self { header, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_gives_names_and_numbers_and_an_empty_cell_is_missing() {
        let csv = Csv::parse("\u{feff}\"a\", b\r\n1,2.5\n\n-3e1,\n").unwrap();
        assert_eq!(csv.header, ["a", "b"]);
        assert_eq!(csv.rows[0], [1.0, 2.5]);
        assert!(csv.rows[1][0] == -30.0 && csv.rows[1][1].is_nan());
    }

    #[test]
    fn each_malformed_csv_is_refused_with_its_place() {
        for (text, expect) in [
            ("", "empty"),
            ("a,b\n", "no rows"),
            ("1,2\n3,4\n", "first row holds numbers"),
            ("a,a\n1,2\n", "stands twice"),
            ("a,b\n1\n", "line 2 has 1 cells"),
            ("a,b\n1,2\n3,x\n", "line 3, column \"b\": \"x\" is not a number"),
        ] {
            let error = Csv::parse(text).err().unwrap();
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        }
    }
}
