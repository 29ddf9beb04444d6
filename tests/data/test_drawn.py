"""The drawn set: labels one can see, of very unequal frequency, half of the pictures blank."""

import zipfile

import numpy as np

from pipeline.data.drawn import LABELS, draw, draw_image


def test_equal_arguments_give_equal_bytes_and_a_picture_depends_on_its_number_alone(tmp_path):
    first = draw(tmp_path / "a", images=30, test_images=10, size_px=32)
    again = draw(tmp_path / "b", images=30, test_images=10, size_px=32)
    assert first.train.read_bytes() == again.train.read_bytes()
    more = draw(tmp_path / "c", images=60, test_images=10, size_px=32)
    with zipfile.ZipFile(first.train) as few, zipfile.ZipFile(more.train) as many:
        assert few.read("images/im30.jpg") == many.read("images/im30.jpg")


def test_a_whole_set_is_kept_and_a_damaged_one_drawn_again(tmp_path):
    drawn = draw(tmp_path, images=20, test_images=5, size_px=32)
    body = drawn.train.read_bytes()
    stamp = drawn.train.stat().st_mtime_ns
    draw(tmp_path, images=20, test_images=5, size_px=32)
    assert drawn.train.stat().st_mtime_ns == stamp
    drawn.train.write_bytes(body[:-50])
    draw(tmp_path, images=20, test_images=5, size_px=32)
    assert drawn.train.read_bytes() == body


def test_fourteen_labels_very_unequal_and_half_blank():
    images_by_label = [draw_image(number, 32, 0)[1] for number in range(1, 801)]
    counts = {label: sum(label in labels for labels in images_by_label) for label in LABELS}
    assert len(LABELS) == 14
    assert 0.42 < np.mean([not labels for labels in images_by_label]) < 0.58
    assert max(counts.values()) > 8 * min(counts.values()) > 0


def test_the_archive_names_what_each_picture_bears(tmp_path):
    drawn = draw(tmp_path, images=40, test_images=5, size_px=32)
    with zipfile.ZipFile(drawn.train) as archive:
        for label in LABELS:
            numbers = {int(line) for line in archive.read(f"annotations/{label}.txt").split()}
            assert numbers == {n for n in range(1, 41) if label in draw_image(n, 32, 0)[1]}
    with zipfile.ZipFile(drawn.test) as archive:
        assert "images/im41.jpg" in archive.namelist()


def test_a_red_circle_is_red_and_round():
    """The picture shows what its labels say: pixels of a lone red thing are red in its middle."""
    for number in range(1, 400):
        image, labels = draw_image(number, 64, 0)
        if labels == {"red", "circle"}:
            middle = np.asarray(image)[28:36, 28:36].reshape(-1, 3).mean(axis=0)
            if middle[0] > 150:
                assert middle[0] > middle[1] + 60
                return
    raise AssertionError("no lone red circle among 400 pictures")


def test_it_reports_each_picture(told, tmp_path):
    draw(tmp_path, images=3, test_images=2, size_px=32)
    assert [(state.doing, state.done, state.total) for state in told] == [
        *(("drawing drawn.zip, image", number, 3) for number in range(3)),
        *(("drawing drawn-test.zip, image", number, 2) for number in range(2)),
    ]
