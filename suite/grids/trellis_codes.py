"""Codes of a bitshift trellis: which V values a state of L bits stands for.

Tseng, Sun, Hou, De Sa 2024, "QTIP: Quantization with Trellises and Incoherence Processing", arXiv:2406.11235, section
3.1; the constants are those of the release (Cornell-RelaxML/qtip at e90c6688, lib/codebook/bitshift.py). Successive
states share all but k bits, and yet their values should look independent, at the cost of a few instructions:

- "1mad" (Alg. 1): a linear congruence, then the sum of its four bytes, near Gaussian by the central limit theorem;
- "3inst" (Alg. 2): a linear congruence, whose halves become float16 of random mantissa and sign, and their sum;
- "hyb" (section 3.1.2): a hash whose bits are the sign of the first of two values and the index of both in a table;
- "gaussian": independent draws for all states, the ideal that the others imitate.

Nothing of this is stored with a matrix: programs hold the table of "hyb" (2 KiB), and the seed of "gaussian".
"""

import base64
from functools import cache
from typing import Literal

import numpy as np
import torch

Code = Literal["1mad", "3inst", "hyb", "gaussian"]
CODES: tuple[str, ...] = Code.__args__  # type: ignore[attr-defined]
HYB_ENTRIES = 512  # pairs, as in the release
_SEED = 0  # of "gaussian"; any is as good


def one_mad(states: torch.Tensor) -> torch.Tensor:
    """Values of 1MAD, float32, for `states` below 2^32: near mean 0 and variance 1."""
    x = (states.to(torch.int64) * 34038481 + 76625530) & 0xFFFFFFFF
    total = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24)
    return (total - 510).float() / 147.800537109375


def three_inst(states: torch.Tensor) -> torch.Tensor:
    """Values of 3INST, float32, for `states` below 2^32, as the release has them: of standard deviation 1.2437."""
    x = ((states.to(torch.int64) * 89226354 + 64248484) & 0x8FFF8FFF) ^ 0x3B603B60
    high, low = ((x >> shift & 0xFFFF).to(torch.int32).to(torch.int16).view(torch.float16) for shift in (16, 0))
    return (high + low).float()


def hyb(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Values (.., 2) of HYB for `states` (..), from a `table` (512, 2), in its type; differentiable in it."""
    x = states.to(torch.int64)
    x = x * (x + 1)
    flip = torch.stack([1 - 2 * (x >> 15 & 1), torch.ones_like(x)], -1)
    return table[x >> 6 & (HYB_ENTRIES - 1)] * flip.to(table)


@cache
def values_of(code: str, L: int, V: int) -> torch.Tensor:
    """What all states stand for: (2^L, V), float32; "hyb" with the table that programs hold. Not to be changed."""
    states = torch.arange(1 << L)
    if code == "gaussian":  # a legacy generator: numpy promises that its numbers stay as they are
        draws = np.random.RandomState(_SEED).standard_normal((1 << L, V))
        return torch.from_numpy(draws).half().float()
    if code == "hyb":
        return hyb(states, hyb_table())
    return (one_mad if code == "1mad" else three_inst)(states)[:, None]


@cache
def hyb_table() -> torch.Tensor:
    """The table (512, 2), float32 and exact in float16, that `half_plane_means` gives. Not to be changed."""
    stored = np.frombuffer(base64.b85decode(_HYB), dtype="<f2").astype(np.float32)
    return torch.from_numpy(stored).reshape(HYB_ENTRIES, 2)


def half_plane_means(points: int = 1 << 15, rounds: int = 50) -> torch.Tensor:
    """Centroids (512, 2), float64, of a Gaussian on the half plane of x_0 > 0, by Lloyd's algorithm, no draws at all.

    The sign bit makes the other half, so that 1,024 pairs are placed; the release places 512 on the whole plane, and
    mirrors them. The Gaussian is `points` of a low-discrepancy sequence (Roberts 2018: the generalized golden ratio);
    the first 512 of them begin. All is scaled to the deviation sqrt(1 - 2^-4) of the best reproduction at 2 bits.
    """
    ratio = 1.32471795724474602596  # the real root of x^3 = x + 1
    n = torch.arange(1, points + 1, dtype=torch.float64)[:, None]
    x = torch.special.ndtri((0.5 + n / torch.tensor([ratio, ratio**2], dtype=torch.float64)) % 1)
    x[:, 0] = x[:, 0].abs()
    means = x[:HYB_ENTRIES].clone()
    for _ in range(rounds):
        nearest = (means.square().sum(1) - 2 * x @ means.T).argmin(1)
        counts = torch.bincount(nearest, minlength=HYB_ENTRIES)[:, None]
        means = torch.zeros_like(means).index_add_(0, nearest, x) / counts.clamp(min=1)
    return means * ((1 - 2.0**-4) / means.square().mean()).sqrt()


# 512 pairs of float16, in base 85: `half_plane_means()`, which a test makes again
_HYB = (
    "-#BZ%9zk+5;W(YS_b634L^!v!u0O>+&N+ghB`rU`EjS1@E<OpmojOK2OfTZK6*ovdiajl)7&|q-S}`v)_BMdJ8a>iEkvlZD1T^(L5H@|RK|ON6-a"
    "DE!7Br~35jCwiKs+Y4?K~ts1~rwfpf&ctxjRZS?L7CoD>i;Oc{0hj!a5&3Fg+@;{WgZchA|Q{;ySClJU;(7xi{6f>o31MnK{(3Lq9*kxi?)gp)Ur"
    "!j5!=QGC+2@m^jZn*CtxA=R3_n{z3M$DLE6oL?}`>rZ^?INkBk5Avs&J{VrfX7&wA0BtL1rtU2#Cd@#$nyEjEUu04XaKszr#3^3a(88@4}q&>biF"
    "gpObV>4?yjWwsUyFBzhOglj>RWrxDBQ=^fdpu9M2Rt)6GBpUb0X615`#Y;5+C0I$q&1~ABQy569Xm=oD?L%PAvgIw{V_cxc{_u>Jv{?8AUCzS7BG"
    ")FBRY<>hCV+&?>Fuuq%5$#_Bk0f*FFflAUMo9X(%tYn>lAa(?HCuRXIDpTqn0Q_Bc_xpFmYOf;ow{J1Vq1A2<cA06@~dh&l8#h$_Fj#5W>2H9pI>"
    "UpoFgrZ3#Bqc{w|!96lGl{&+^+%Ro8eKrxd8a-b;t~-ORE-~J~U^Q7YY&>JT>N}@6G&E1Q7BvbyxI4$O)jR{i;WT0~$umj2+B=~)tUN%sF*cSv2r"
    "{3rM?H=~JU!zuz%~rL-!Z{Akvd$svpuLgVmF(y{x2Rt%Q*}&ygqrn5jdhZtSrB{VmWd<g+G<B@i>J)Jtnj-JUNQI)j?u7<2b>%geaIglQ<!>-#=+"
    "TYdKOZL@dF)B{*?5LqDCln>n32#4hKv8aTK<zdc|t%{unHNibeE!ZrZ8tUWb4%{n}_Au=yMW;GBjFFkI(ZaW4xHZzX7CN)4ha6G59ay;)nJ2hgV%"
    "rs%WEIb7^X*^82GBt}iXEOt}E<8Cs3_XS-%QfY_{V_u|-#Y8L4L&wG88+FqzcAT6b2_7_fj+IijW<3t$1V=K)j10}06zk_3OK<$Kq=3yNjllSXh4"
    "!PNjTcNoF}h1<~UlmDMFe(N;zY#Rxm}tR5&v;(m&9<DLJz^mnew0w>V!s0zPi8Q95<N<t}P67B@e;cs-jq7dnNv7c=lXEjIVC;5v)K3OnO5Kr+p{"
    "VKwMCeLQNo)jK0R>oW?n(l|On{5xJRXgo%|Ks07If;3jRCp;uOQ9P%ygEk>RW->%BZaY}K1U-c}y)}=x9WoX>!#Xpw|2<Ma3^$}Ln=o~}KsvEDQa"
    ";AG)i;1TbSS2?+Bvg6F+ljFbvWR>`Y0kcb~!P*_CPE<-Z;dx>nry?t~mKBB|sXzTsfCDY$;8-&Nv@B_C5u*4LbilN-rLyJU2_dPCkn@RXR1fi7+x"
    "c5;qvNw>@G#Cp(^|!7}2#D>l9~20g*Kg*#+995WQQEj3p?iagyEZ#*EroixrgfHd~GSv+q!&^(K^@-@ml2{d4+K|J!l&pePbs5M`@@-YuN$vVxp("
    "mjtnAUCnD^Dm6QOge%y2tK^KZa089WiAc3DLRBawmvnlyEyj0jwqKh3pq8r^grD=WH=|c)G0AM!Z?|)%|Ok+0Xb?i^(l<IXgG*C+&}WRra2-!hAk"
    "Sgt~O~xVLse3>N%*p^DcBZ!8Sa&o<0^lLOPkT{4$_G+%=~!vOS`_={j#WU@~pEJT}5QygatDnLG?YQ#9EwVl`;Ia6DEw20X#IqBI^mVl)Y~i#t$0"
    "RXidspEc^dnKGX?-aE9p9X%#HiZ;!&+%2>|r#goz9zJiqBsZ)zdN63YOF9-hNIoRA%Qy!<x+xGUxH<m3?LPrFG&oVY9xC)XYdI6Ov_OPCjW|=M)G"
    "9H(vpB0YuRvqFbUCs)<th8Lc{pM{{yxMj5IUm0^esm;DmWgxXg;Aj89MN_(=mWO7B>N?Z9PW52RmLg)-gD`M>Z!pJ3ZF6Z9Bg_5;9G!2sDwtVmyj"
    "8vOB4|E;I}|;WS3JWjuyFJUkPvxHT-l+B4@f-#f0m+&ttscr~N9yf9ll>pC2;d_FM1c{Xt|iZBGbH9Al@tUVyOq&FTsk}%=1ZaE~u2R}13KRC6!g"
    "ex>SOF81Vwm*nGKsYL~axqmw6*&+vD?;eJ&N%TmGALoVu{h*9NI*EWtU4J$5G@oiNH|Tr2|sB!#yN(#-!9oY#W%~d3_fx|5IWE-fHOzDhBmo220e"
    "<nR69UB1v0*~e>G=6x;&LH4?NSnC^X(R;xrYxm^^Me3_O3d_%x+HHZ<cXZ#-hXzC77Ayfv7)S~I*kTsu;<RXr&_VK&4ifH6D0s5+1}kUd7ZvNq;9"
    "tuXww8#{<SK0aC}GdSkGFfL{_**WOBaX-O2KRDL4!YfHVCOHG4=s;7w*f@POA}9p9usB6Ivp_7jD>>IZv?!USBR77&!ar{?xH+)8elF%XcQ<LanL"
    "Z3X3pxg_UM<|drZ#Icggw5x0Xu{^Yca{TT{d1kx;y}`#5$wDa5IlFh&3y_Y&>>27(BPPF*I~M5;SwKVmvayOgsuQ{WR{o#xqzrP&)>=l04Bn6E$7"
    "2<uj$hiaJ*?A3YYl#5UD8%r79gRXRUAs6AM+0XcR+h%h@aNIGM@-#$7y5ICK<B`I$^uQ`3QXh76Jc{q|Va4AN-_c+ZqIzbV+"
)
