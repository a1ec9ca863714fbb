"""The first page's figure: what Grad-CAM, MSG-CAM and the window enhancer see in two photographs.

    python scripts/overview.py        # writes book/_static/overview.jpg

A rule chooses the photographs, from recorded rows: of MSG-CAM's lead over Grad-CAM in over-all score the upper
and the lower quartile.
"""

import matplotlib.pyplot as plt

import thesis_lib as tl
from thesis_lib import plots
from thesis_lib.data import REPOSITORY

FILE = REPOSITORY / "book/_static/overview.jpg"
DATASET, NETWORK = "photographs", "efficientnet_lite0"


def chosen() -> list[str]:
    """The ids of the two photographs."""
    rows = tl.recorded(DATASET, NETWORK, "insertion_deletion")
    scores = rows.pivot(index="id", columns="method", values="overall")
    lead = (scores["msg_cam"] - scores["grad_cam"]).dropna().sort_values()
    return list(lead.index[[-1 - len(lead) // 4, len(lead) // 4]])


def main() -> None:
    data, classifier = tl.open_dataset(DATASET), tl.load_classifier(NETWORK, device="cpu")
    columns = {
        "Grad-CAM": tl.METHODS["grad_cam"],
        "enhanced": tl.enhance("grad_cam", cover="mean"),
        "MSG-CAM": tl.METHODS["msg_cam"],
    }
    plots.use_style()
    figure, axes = plt.subplots(1, 8, figsize=(2 * plots.WIDTH, 2.4))
    authors = {row["id"]: row["author"] for row in data.rows}
    for row, name in zip((axes[:4], axes[4:]), chosen(), strict=True):
        sample = data[list(data.ids).index(name)]
        images = classifier.normalise(sample.pixels[None])
        c = int(classifier.predict(images))
        row[0].imshow(plots.picture(sample.pixels))
        row[0].set_ylabel(classifier.categories[c], fontsize=17)
        for axis, method in zip(row[1:], columns.values(), strict=True):
            axis.imshow(plots.overlay(sample.pixels, method(classifier, images, c)[0]))
        print(f"{name}: {data.categories[sample.classes[0]]}, by {authors[name]}")
    for axis, title in zip(axes, 2 * ["photograph", *columns], strict=True):
        axis.set_title(title, fontsize=17)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    figure.savefig(FILE, dpi=125, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
