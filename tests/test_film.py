import io

from PIL import Image

from giou_repro.experiments import film


def test_film_has_a_picture_a_step_and_the_same_bytes_twice():
    table = film.boxes_on_their_way([0, 3])
    first, again = film.film(table), film.film(table)
    assert first == again
    assert Image.open(io.BytesIO(first)).n_frames == 2


def test_film_shows_iou_standing_still_and_the_others_moving():
    way = film.boxes_on_their_way([0, 3]).set_index(["gradients", "loss", "start", "step"])
    moved = (way.x.xs(3, level="step") - way.x.xs(0, level="step")).xs("horizontal", level="start")
    assert (moved.xs("iou", level="loss") == 0).all()
    assert (moved.drop("iou", level="loss").drop(("published", "giou")) < 0).all()
