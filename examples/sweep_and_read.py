"""A small sweep on the bundled jets, and how to read its results.

usage: python examples/sweep_and_read.py [FOLDER]      default: sweep-and-read; rerun it to resume
"""

import sys

import kdfast

folder = sys.argv[1] if len(sys.argv) > 1 else "sweep-and-read"

# Four configurations: T is 3 or 7, or falls from there to 1; α is 0.5. Two seeds, each with its own baseline.
grid = kdfast.grid(temperature=[3, 7], alpha=[0.5], temperature_final=[1])
study = kdfast.sweep(out=folder, grid=grid, seeds=[1, 2], epochs=10, progress=False)

# One row per trained student: a pandas DataFrame.
columns = ["run_name", "seed", "auc_student", "auc_baseline", "bkg_rej_50"]
print(study.results[columns].sort_values("auc_student", ascending=False).to_string(index=False))

# The best run is chosen on the validation jets; its numbers are those of the test jets.
best = study.best("auc")
print(f"\nbest on the validation jets: {best['run_name']}, seed {best['seed']}, test AUC {best['auc_student']:.4f}")

# Scores jet by jet, for plots of your own.
scores = study.scores(best["run_name"], int(best["seed"]))
test = scores[scores["split"] == "test"]
print(f"mean score of signal {test.probability[test.label == 1].mean():.2f}, ", end="")
print(f"of background {test.probability[test.label == 0].mean():.2f}")

# The model file contains everything that is needed to score new jets.
tagger = kdfast.load_model(f"{folder}/models/best_student.safetensors")
print(f"scores of five jets: {tagger.predict(kdfast.sample()[:5])[:, 0].tolist()}")

print(f"\nopen {folder}/report.html in a browser; ANALYSIS_SUMMARY.txt has the same in words")
