"""Each of timm's families, by its smallest architecture: it builds, runs, applies dropout, and has a last layer."""

import warnings

import pytest
import timm
import torch

from imet_ray.models.models import build_model, check_model
from imet_ray.models.pretrained import classifiers, output_layers

SMALLEST = """
beit_base_patch16_224 caformer_s18 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano
crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224
densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1
efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18
legacy_xception levit_128s lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large pvt_v2_b0
qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100
sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256 test_byobnet
test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p
xcit_nano_12_p8_224
"""
SLOW = {"sequencer2d_s": 64}  # pixels: its LSTMs take half a minute at 224, without numbers


@pytest.mark.parametrize("architecture", SMALLEST.split())
def test_a_family_is_built_and_run_before_a_trial_and_each_of_its_classifiers_has_a_layer_of_logits(
    architecture,
):
    size = SLOW.get(architecture) or timm.get_pretrained_cfg(architecture).input_size[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's and torch's, about these architectures
        check_model(architecture, size, 0.2)
        with torch.device("meta"):
            tagger = build_model(architecture, n_labels=7, image_size=size, dropout=0.2, weights="none")
    layers = output_layers(tagger.body)
    assert len(layers) == len(classifiers(tagger.body))
    assert all(len(layer.weight) == 7 for layer in layers)


def test_all_families_are_walked():
    families = timm.list_modules()
    assert len(families) > 90
    assert [
        family for family in families if not set(timm.list_models(module=family)) & set(SMALLEST.split())
    ] == []
