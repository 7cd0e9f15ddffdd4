//! Figures of a choice among labels, from their confusion matrix: counts at `expected · (K + 1) + answered`, where
//! the answer K is none of the labels.

/// Where an item counts. `answered` is None for a text that is no label.
pub fn place(k: usize, expected: usize, answered: Option<usize>) -> usize {
    expected * (k + 1) + answered.unwrap_or(k)
}

pub fn counts(k: usize) -> usize {
    k * (k + 1)
}

pub fn accuracy(matrix: &[f64], k: usize) -> f64 {
    let right: f64 = (0..k).map(|label| matrix[place(k, label, Some(label))]).sum();
    right / matrix.iter().sum::<f64>()
}

/// The mean of the labels' F1, over the labels that were expected or answered.
pub fn macro_f1(matrix: &[f64], k: usize) -> f64 {
    let (mut sum, mut met) = (0.0, 0);
    for label in 0..k {
        let expected: f64 = matrix[label * (k + 1)..(label + 1) * (k + 1)].iter().sum();
        let answered: f64 = (0..k).map(|row| matrix[place(k, row, Some(label))]).sum();
        if expected + answered > 0.0 {
            sum += super::score::f1(matrix[place(k, label, Some(label))], answered, expected);
            met += 1;
        }
    }
    sum / f64::from(met)
}
