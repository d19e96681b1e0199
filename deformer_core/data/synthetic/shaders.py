"""GLSL of the renderer. Clothes and faces are cut in template coordinates, per pixel, so hems and eyes are sharp.

`rest` is the fragment's place on the unposed mean body; all lengths are metres of it, y down.
"""

VERTEX = """
#version 330
uniform vec3 crop_box;   // centre x, centre y and half side of the window on the plane z = 1
in vec3 in_position;     // full camera, metres
in vec3 in_normal;
in vec3 in_rest;
in float in_arm;
out vec3 position;
out vec3 normal;
out vec3 rest;
out float arm;
void main() {
    const float near = 0.05, far = 100.0;
    position = in_position; normal = in_normal; rest = in_rest; arm = in_arm;
    vec2 window = (in_position.xy - crop_box.xy * in_position.z) / crop_box.z;
    gl_Position = vec4(window, (in_position.z * (far + near) - 2.0 * far * near) / (far - near), in_position.z);
}
"""

FRAGMENT = """
#version 330
struct Cloth { vec3 first; vec3 second; int pattern; vec3 along; vec3 across; float gloss; float wrinkle; };
uniform Cloth top, bottom;
uniform int piece;       // 0 body, 1 skirt, 2 long hair; garments: 3 clothes, 4 shoes, 5 hair, 6 hat
uniform float is_subject;
uniform float flat_color;
uniform vec3 skin, lips, hair, brow, iris, hat, shoe, sole, sock;
uniform float skin_gloss, phase, sleeve, hem_y, waist_y, leg_end_y, neckline, opening;
uniform float sole_y, shoe_y, sock_y, glove, hair_front_y, hair_back_y, hat_on, beard, hair_end_y, glasses;
uniform vec3 eye_at, ear_at, nose_at, neck_at;
uniform vec3 key_direction, key_color, fill_direction, fill_color, sky_color, ground_color;
in vec3 position;
in vec3 normal;
in vec3 rest;
in float arm;
layout(location = 0) out vec4 color;
layout(location = 1) out float subject;

float wave(float x) { return 0.5 + 0.5 * sin(x + phase); }

vec3 cloth_color(Cloth c, vec3 r) {
    float w = 0.0;
    if (c.pattern == 1) w = smoothstep(0.4, 0.6, wave(dot(r, c.along)));
    else if (c.pattern == 2) w = 0.5 * (step(0.5, wave(dot(r, c.along))) + step(0.5, wave(dot(r, c.across))));
    else if (c.pattern == 3) w = smoothstep(0.3, 0.7, wave(dot(r, c.along) * 0.3 + 3.0 * sin(dot(r, c.across) * 0.35)));
    else if (c.pattern == 4) w = float(abs(r.x) < 0.09 && r.z < 0.0 && abs(r.y - neck_at.y - 0.22) < 0.07);
    return mix(c.first, c.second, w);
}

void main() {
    if (piece == 1 && rest.y > leg_end_y) discard;
    if (piece == 2 && rest.y > hair_end_y) discard;
    vec3 r = rest;
    vec3 albedo = skin * (0.96 + 0.06 * sin(dot(r, vec3(31.0, 23.0, 41.0)) + phase));
    float gloss = skin_gloss, wrinkle = 0.0, shine = 24.0;
    vec3 look = vec3(abs(r.x), r.y, r.z);
    bool is_head = r.y < neck_at.y - 0.035 && arm < 0.0;

    if (piece == 2) { albedo = hair * (0.8 + 0.4 * wave(r.x * 400.0 + 3.0 * sin(r.y * 30.0))); gloss = 0.12; }
    else if (piece == 3) {   // `arm` says which side of a garment this is, see `clothes`
        if (arm < 0.25 || (arm < 0.75 && r.y < waist_y)) {
            albedo = cloth_color(top, r); gloss = top.gloss; wrinkle = top.wrinkle;
        } else { albedo = cloth_color(bottom, r); gloss = bottom.gloss; wrinkle = bottom.wrinkle; }
    } else if (piece == 4) {
        albedo = arm > 0.5 ? sock : (r.y > sole_y ? sole : shoe);
        gloss = arm > 0.5 ? 0.0 : 0.1;
    } else if (piece == 5) {
        albedo = hair * (0.85 + 0.3 * wave(r.x * 500.0 + r.z * 300.0 + 5.0 * sin(r.y * 30.0))); gloss = 0.12;
    } else if (piece == 6) { albedo = hat; gloss = 0.02; wrinkle = 0.1; }
    else if (piece == 1) { albedo = cloth_color(bottom, r); gloss = bottom.gloss; wrinkle = bottom.wrinkle; }
    else if (is_head) {
        float t = smoothstep(0.0, 1.0, clamp((r.z - eye_at.z - 0.045) / 0.06, 0.0, 1.0));
        float line = mix(hair_front_y, hair_back_y, t) + 0.006 * sin(r.x * 90.0 + phase);
        bool on_ear = length(look.yz - ear_at.yz) < 0.034 && look.x > ear_at.x - 0.012;
        vec2 e = look.xy - eye_at.xy;
        if (r.z < eye_at.z + 0.05) {
            float below_nose = r.y - nose_at.y;
            float chin = smoothstep(0.008, 0.03, below_nose + 0.25 * (look.x - 0.035));
            albedo = mix(albedo, hair, beard * chin);
            albedo *= 1.0 - 0.12 * (1.0 - smoothstep(0.0, 0.026, length(e * vec2(0.8, 1.3))));
            vec2 m = vec2(look.x / 0.026, (below_nose - 0.036 + 0.002 * cos(look.x * 120.0)) / 0.0085);
            if (dot(m, m) < 1.0) albedo = mix(albedo, lips, 0.8) * (abs(m.y) < 0.15 ? 0.45 : 1.0);
            if (abs(e.y + 0.023 - 0.15 * abs(e.x)) < 0.004 && abs(e.x - 0.002) < 0.021) albedo = brow;
            vec2 s = vec2(e.x / 0.0155, e.y / 0.0075);
            if (dot(s, s) < 1.0) {
                albedo = length(e) < 0.0065 ? iris * step(0.0025, length(e)) : vec3(0.6);
                gloss = 0.4;
                if (dot(s, s) > 0.75 && e.y < 0.0) albedo = brow * 0.4;
            }
            float rim = abs(length(e * vec2(0.85, 1.0)) - 0.021);
            if (glasses > 0.5 && (rim < 0.0025 || (look.x < 0.012 && abs(e.y) < 0.002))) albedo = vec3(0.02);
        }
        if (r.y < line && (!on_ear || hat_on > 0.5)) {
            albedo = hat_on > 0.5 ? hat : hair * (0.75 + 0.5 * wave(r.x * 350.0 + r.z * 200.0 + 3.0 * sin(r.y * 40.0)));
            gloss = hat_on > 0.5 ? 0.02 : 0.12;
            wrinkle = 0.15;
        }
    } else {
        bool trunk = arm < 0.0;
        if (trunk && r.y > sock_y) albedo = sock;
        bool legs = trunk && r.y > waist_y && r.y < leg_end_y;
        float collar = length(vec2(r.x, (r.y - neck_at.y) * (r.z < neck_at.z ? 0.75 : 1.3)));
        bool open_front = r.z < neck_at.z && look.x < opening * 0.2 && r.y < neck_at.y + opening;
        bool upper = sleeve > -5.0 && arm < sleeve && !(trunk && r.y > hem_y) && collar > neckline && !open_front;
        if (legs) { albedo = cloth_color(bottom, r); gloss = bottom.gloss; wrinkle = bottom.wrinkle; }
        if (upper) { albedo = cloth_color(top, r); gloss = top.gloss; wrinkle = top.wrinkle; }
        if (upper && abs(r.y - hem_y) < 0.008 || legs && abs(r.y - waist_y) < 0.015) albedo *= 0.6;
        if (trunk && r.y > shoe_y) { albedo = r.y > sole_y ? sole : shoe; gloss = 0.1; wrinkle = 0.0; }
        if (arm > 2.0 && glove > 0.5) albedo = shoe;
    }

    vec3 n = normalize(normal);
    vec3 v = normalize(-position);
    if (dot(n, v) < 0.0) n = -n;
    vec3 fold = vec3(sin(dot(r, vec3(47.0, 19.0, 28.0)) + 2.5 * sin(dot(r, vec3(21.0, 33.0, 9.0)) + phase)),
                     sin(dot(r, vec3(-25.0, 44.0, 31.0)) + 2.5 * sin(dot(r, vec3(13.0, -27.0, 22.0)) + phase)), 0.0);
    n = normalize(n + wrinkle * fold);
    vec3 light = mix(ground_color, sky_color, 0.5 - 0.5 * n.y);
    light += key_color * max(dot(n, key_direction), 0.0) + fill_color * max(dot(n, fill_direction), 0.0);
    float glint = gloss * pow(max(dot(n, normalize(key_direction + v)), 0.0), shine);
    vec3 lit = albedo * light + key_color * glint;
    color = vec4(mix(pow(clamp(lit, 0.0, 1.0), vec3(1.0 / 2.2)), vec3(1.0), flat_color), 1.0);
    subject = is_subject;
}
"""
